"""The probes that a training run makes of its own encoder, beside random weights and raw pixels."""

from dataclasses import dataclass

import torch
from paperkit import UserError
from torch import Tensor

from flexpredict import data
from flexpredict.config import TrainConfig
from flexpredict.data import Images, Scale, Source
from flexpredict.diagnostics import rankme
from flexpredict.model import Encoder
from flexpredict.probes import Split, features, knn, logistic, ridge

MOST = (10_000, 2_000)
"""Training and test images that are drawn where a set has more."""
MOST_LOGISTIC = 2_000
"""Training images up to which the linear probe is logistic regression; beyond it, that takes too long."""
MOST_RANKED, MOST_SOLVED = 1_024, 4_096
"""Channels up to which an effective rank is told, and a ridge classifier: the cost grows with their cube, and
that of large raw pixels would be more than all the rest's."""
COLUMNS = {
    "logistic": "logistic regression %", "ridge": "ridge classifier %", "knn": "20-NN %",
    "rankme": "effective rank",
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """Labelled images of one set, to fit simple classifiers on and to test them."""

    fit: Images
    test: Images
    scale: Scale

    def split(self, encoder: Encoder) -> Split:
        """Features of the last layer."""
        x, x_test = (features(encoder, part.pixels, self.scale)[-1] for part in (self.fit, self.test))
        return Split(x, self.fit.labels, x_test, self.test.labels)

    def pixels(self) -> Split:
        """The pixels themselves."""
        x, x_test = (self.scale(part.pixels).flatten(1) for part in (self.fit, self.test))
        return Split(x, self.fit.labels, x_test, self.test.labels)

    def quick(self, encoder: Encoder) -> dict[str, float]:
        """The figures that are cheap enough for a curve."""
        found = self.split(encoder)
        x = torch.cat([found.x, found.x_test])
        return {
            "knn": knn(found), "rankme": rankme(x), "rankme_uncentred": rankme(x, centred=False),
            "feature_std": float(x.std(0).mean()),
        }  # fmt: skip

    def figures(self, split: Split) -> dict[str, float]:
        """The figures of the table at the end."""
        x: Tensor = torch.cat([split.x, split.x_test])
        found = {"knn": knn(split)}
        if len(split.x) <= MOST_LOGISTIC:
            found["logistic"] = logistic(split)
        elif x.shape[1] <= MOST_SOLVED:
            found["ridge"] = ridge(split)
        if x.shape[1] <= MOST_RANKED:
            found["rankme"] = rankme(x)
        return found

    def compare(self, initial: Encoder, trained: Encoder) -> dict[str, dict[str, float]]:
        """The figures of the trained encoder, of its initial weights, and of raw pixels."""
        return {
            "trained": self.figures(self.split(trained)),
            "random weights": self.figures(self.split(initial)),
            "raw pixels": self.figures(self.pixels()),
        }


def probe_set(config: TrainConfig, source: Source) -> Probe | None:
    """The labelled images that a run is probed on; None where the set has no labels or no test split."""
    size = source.shape[1]
    try:
        test = data.open_split(config, "test", download=False)
    except UserError:
        return None
    if not len(test) or int(test.labels.min()) < 0 or int(source.set.labels.min()) < 0:
        return None
    fit = source.set.subset(MOST[0]) if len(source.set) > MOST[0] else source.set
    test = test.subset(MOST[1]) if len(test) > MOST[1] else test
    loaded = source.memory if fit is source.set and source.memory else data.load(fit, size, config.strict)
    return Probe(loaded, data.load(test, size, config.strict), source.scale)


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows as text, one line each."""
    shown = [key for key in COLUMNS if key in rows["trained"]]
    head = f"{'':16}" + "".join(f"{COLUMNS[key]:>24}" for key in shown)
    lines = [
        f"{name:16}" + "".join(f"{found[key]:>24.1f}" if key in found else f"{'-':>24}" for key in shown)
        for name, found in rows.items()
    ]
    return "\n".join([head, *lines])
