"""The run folder and the training loop's frame: log, metrics, resume, signals, progress."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import time
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperkit import UserError
from paperkit.run.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from paperkit.run.config import commit, differences, now, to_json, versions
from paperkit.run.files import atomic, explain, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RunOptions:
    """Where a run writes and what it runs on; no part of the experiment's configuration."""

    out: str = ""
    """Run folder; by default runs/<paper>/<time>-<preset>-s<seed>."""
    resume: str = ""
    """Go on with a run that stopped: its folder, or 'latest'."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: typing.Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of matrix products; the reason for 'auto' is printed."""


class Interrupted(Exception):
    """A signal ended the run after it had saved; `code` is the exit code of the command (128 + signal)."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.code = 128 + number


def runs_folder(paper: str) -> Path:
    """Where this paper's runs lie, below the working directory."""
    return Path("runs") / paper


def find(paper: str, where: str | os.PathLike[str]) -> Path:
    """The run folder that `where` names: a path, or 'latest' for this paper's newest.

    Raises `UserError` when it is missing or belongs to something else.
    """
    if str(where) == "latest":
        folders = sorted(path.parent for path in runs_folder(paper).glob("*/manifest.json"))
        if not folders:
            raise UserError(f"there is no run in {runs_folder(paper)} yet: start one with '{paper} train'")
        return folders[-1]
    folder = Path(where)
    if not folder.is_dir():
        raise UserError(f"no run folder at {folder}: name one below {runs_folder(paper)}, or 'latest'")
    if not (folder / "manifest.json").is_file():
        raise UserError(
            f"{folder} is no run folder (it has no manifest.json): name one below {runs_folder(paper)}"
        )
    owner = read_json(folder / "manifest.json").get("paper")
    if owner != paper:
        raise UserError(f"{folder} is a run of {owner}, not of {paper}")
    return folder


class Run:
    """One run: its folder, what it logs, its checkpoints, and a clean stop on Ctrl-C or SIGTERM.

    Under several processes only the first writes; all agree on the folder and on when to stop.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], resumed: bool):
        from paperkit import parallel

        self.folder, self.manifest, self.resumed = folder, manifest, resumed
        self._before = manifest.get("state") if resumed else None
        self.main = parallel.world()[0] == 0
        self.last = False
        self._signal = 0
        self._started = time.monotonic()

    @classmethod
    def open(
        cls,
        paper: str,
        title: str,
        config: Any,
        options: RunOptions,
        preset: str = "",
        seed: int = 0,
        **facts: Any,
    ) -> "Run":
        """Start a run folder, or open the one that `options.resume` names.

        `facts` go into the manifest (device, precision, data, parameters). Raises `UserError` for a folder
        that is missing, foreign, corrupt, or of another configuration (the differing keys are listed).
        """
        from paperkit import parallel

        rank, _ = parallel.world()
        values = to_json(config)
        if options.resume:
            folder = find(paper, options.resume)
            changed = differences(read_json(folder / "config.json"), values)
            if changed:
                raise UserError(
                    f"{folder} has another configuration, resume it without these flags: {'; '.join(changed)}"
                )
            manifest = read_json(folder / "manifest.json")
            manifest["resumed"] = [*manifest.get("resumed", []), now()]
        else:
            folder = (
                Path(options.out)
                if options.out
                else _fresh(runs_folder(paper), f"{preset or 'custom'}-s{seed}")
            )
            folder = Path(parallel.agree(str(folder)))
            if rank == 0 and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UserError(f"--out {folder} is not empty: choose another, or --resume {folder}")
            state, dirty = commit()
            manifest = {
                "paper": paper,
                "title": title,
                "preset": preset,
                "seed": seed,
                "command": _command_line(paper),
                "commit": state,
                "dirty": dirty,
                "versions": versions("torch", "numpy", paper, "paperkit"),
                "started": now(),
            }
        run = cls(folder, {**manifest, **facts}, bool(options.resume))
        if rank == 0 and not run.finished:
            if not options.resume:
                write_json(folder / "config.json", values)
            run._write_manifest(state="running", ended=None)
        return run

    @property
    def finished(self) -> bool:
        """Whether the run had ended before it was opened."""
        return self._before == "finished"

    # -- what it says

    def say(self, text: str) -> None:
        """Print a line (above the progress bar) and append it to log.txt."""
        if not self.main:
            return
        from tqdm import tqdm

        tqdm.write(text)
        self._append("log.txt", text)

    def log(self, step: int, **metrics: float) -> None:
        """Append one line to metrics.jsonl. Only figures that an equal run would repeat belong there."""
        if self.main:
            self._append("metrics.jsonl", json.dumps({"step": step, **metrics}))

    def _append(self, name: str, line: str) -> None:
        try:
            with open(self.folder / name, "a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise explain(error, self.folder / name) from error

    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl; a last line cut short by a kill is left out."""
        return read_metrics(self.folder)

    def _write_manifest(self, **changes: Any) -> None:
        self.manifest.update(changes)
        if self.main:
            write_json(self.folder / "manifest.json", self.manifest)

    # -- checkpoints

    def save(
        self, step: int, weights: Mapping[str, Mapping[str, "Tensor"]], state: Any, keep: int = 2
    ) -> None:
        """Write checkpoints/<step>/: one safetensors file per group of weights, `state` for the rest.

        `state` holds tensors, numbers, strings, lists and dicts only. The folder appears whole or not at all;
        the last `keep` stay.
        """
        if not self.main:
            return
        save_checkpoint(self.folder / "checkpoints" / f"{step:08d}", step, weights, state)
        for old in checkpoints(self.folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self) -> tuple[int, dict[str, dict[str, "Tensor"]], Any] | None:
        """(step, weights, state) of the last checkpoint, or None; metrics after it are dropped.

        A run that is not resumed has nothing to restore.
        """
        saved = checkpoints(self.folder) if self.resumed else []
        if self.resumed and self.main:
            step = int(saved[-1].name) if saved else -1
            rows = [row for row in self.metrics() if row["step"] <= step]
            with atomic(self.folder / "metrics.jsonl", "w") as stream:
                stream.writelines(json.dumps(row) + "\n" for row in rows)
        if not saved:
            return None
        weights, state = load_checkpoint(saved[-1])
        return int(saved[-1].name), weights, state

    # -- the loop

    def steps(self, start: int, total: int) -> Iterator[int]:
        """Yield start+1 … total with a progress bar and ETA.

        Before each step it is settled whether that one is the `last`: at `total`, or after a signal.
        """
        from tqdm import tqdm

        shown = self.main and sys.stderr.isatty()
        with tqdm(total=total, initial=start, disable=not shown, dynamic_ncols=True, smoothing=0.05) as bar:
            for step in range(start + 1, total + 1):
                self.last = self._stopping() or step == total
                yield step
                bar.update()
                if self.last:
                    return

    def _stopping(self) -> bool:
        """Whether any process has been asked to stop; all get the same answer."""
        from paperkit import parallel

        if parallel.world()[1] == 1:
            return self._signal > 0
        self._signal = parallel.largest(self._signal)
        return self._signal > 0

    def eta(self, done: int, total: int, start: int = 0) -> str:
        """'12 steps/s, 0:01:40 left' from the time since the run was opened."""
        rate = (done - start) / max(time.monotonic() - self._started, 1e-9)
        left = timedelta(seconds=round((total - done) / rate)) if rate > 0 else "?"
        return f"{rate:.1f} steps/s, {left} left"

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Run the loop in this: Ctrl-C and SIGTERM end it after the present step, the manifest tells how.

        A second Ctrl-C interrupts at once. Raises `Interrupted` when the loop was stopped by a signal.
        """

        def note(number: int, _frame: Any) -> None:
            if self._signal == signal.SIGINT == number:
                raise KeyboardInterrupt
            self._signal = number

        old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(UserError):
                self._write_manifest(state="failed", ended=now(), error=f"{type(error).__name__}: {error}")
            raise
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
        if self._signal:
            self._write_manifest(state="interrupted", ended=now())
            resume = f"{self.manifest['paper']} train --resume {shlex.quote(str(self.folder))}"
            raise Interrupted(self._signal, f"stopped and saved; go on with: {resume}")
        self._write_manifest(state="finished", ended=now())


def _command_line(paper: str) -> str:
    """What was typed, with the paper's own command in place of the shared `train`."""
    name = Path(sys.argv[0]).name
    return shlex.join([paper, "train", *sys.argv[1:]] if name == "train" else [name, *sys.argv[1:]])


def _fresh(parent: Path, name: str) -> Path:
    """A folder name that sorts by time and is not taken; two runs of one second get -2, -3 …"""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    candidates = [stem, *(f"{stem}-{k}" for k in range(2, 1000))]
    return next(parent / candidate for candidate in candidates if not (parent / candidate).exists())


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, oldest first; a last line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows
