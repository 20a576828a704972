"""The verbs that move in noise space: `ign interpolate` and `ign arithmetic` (section 4 of the paper)."""

from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from paperkit import UserError, images
from paperkit.run import suggest
from torch import Tensor

from ign import data
from ign.config import ArithmeticConfig, InterpolateConfig
from ign.generate import IGN, trained

Score = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, " n"]]


def interpolate(config: InterpolateConfig) -> Path:
    """`ign interpolate`: linear.png and spherical.png, each row a path from one sample to another."""
    ign = IGN.load(config.run, config.device)
    out = Path(config.out)
    for name in ("linear", "spherical"):
        paths = ign.interpolate(config.n, config.count, name == "spherical", config.k, config.seed)
        tiles = rearrange(paths.cpu(), "n m c h w -> (n m) c h w")
        images.write(out / f"{name}.png", images.grid(tiles, columns=config.count))
        steps = (paths[:, 1:] - paths[:, :-1]).flatten(2).norm(dim=2)
        whole = (paths[:, -1] - paths[:, 0]).flatten(1).norm(dim=1)
        longest = float((steps.amax(1) / whole).mean())
        even = 1 / (config.count - 1)
        print(f"{name:9}  the longest step is {longest:.0%} of the way (even steps: {even:.0%})")
    print(f"{config.n} paths between samples: {out / 'linear.png'}, spherical.png")
    return out


# ---- attributes --------------------------------------------------------------------------------------------


def ink(x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Mean brightness: thick strokes against thin ones."""
    return x.flatten(1).mean(1)


def slant(x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """How far the bright pixels lean to the right: their covariance of height and place over their spread."""
    weight = (x.mean(1) + 1).clamp_min(0) + 1e-6
    weight = weight / weight.sum((1, 2), keepdim=True)
    up, right = (torch.linspace(side, -side, n) for side, n in ((1, x.shape[2]), (-1, x.shape[3])))
    up = up[:, None] - (weight * up[:, None]).sum((1, 2), keepdim=True)
    right = right[None] - (weight * right[None]).sum((1, 2), keepdim=True)
    return (weight * up * right).sum((1, 2)) / (weight * up.square()).sum((1, 2)).clamp_min(1e-6)


def breadth(x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Deviation of the bright pixels from left to right, in images' widths."""
    weight = (x.mean(1) + 1).clamp_min(0).sum(1) + 1e-6
    weight = weight / weight.sum(1, keepdim=True)
    place = torch.linspace(-0.5, 0.5, x.shape[3])
    centred = place - (weight * place).sum(1, keepdim=True)
    return (weight * centred.square()).sum(1).sqrt()


SCORES: dict[str, tuple[Score, str, str]] = {
    "ink": (ink, "thin", "thick"),
    "slant": (slant, "left", "right"),
    "breadth": (breadth, "narrow", "wide"),
}
"""Attributes that every image has: how they are measured, and words for little and much."""


def arithmetic(config: ArithmeticConfig) -> Path:
    """`ign arithmetic`: arithmetic.png, samples moved along an attribute, and how far the attribute moved."""
    ign = IGN.load(config.run, config.device)
    score, less, more = _score(config.attribute, config.run)
    direction = ign.attribute(score, config.samples, seed=config.seed + 1)
    strengths = [config.strength * share for share in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    names = [f"c {sign} ({more} - {less})" for sign in ("-", "- 1/2", "+ 1/2", "+")]
    names.insert(2, "c")
    shown, tried = ign.white(config.n, config.seed), ign.white(500, config.seed)
    rows = {
        name: ign.vary(shown, direction, strength, config.k).cpu()
        for name, strength in zip(names, strengths, strict=True)
    }
    out = Path(config.out)
    images.write(out / "arithmetic.png", images.rows(rows))
    found = [score(ign.vary(tried, direction, strength, config.k).cpu()) for strength in strengths]
    means = "  ".join(
        f"{strength:+g}: {values.mean():.3f}" for strength, values in zip(strengths, found, strict=True)
    )
    right = float((found[-1] > found[0]).float().mean())
    print(f"mean {config.attribute} of 500 samples by strength  {means}")
    print(f"moved the right way in {right:.0%} of them: {out / 'arithmetic.png'}")
    return out


def _score(attribute: str, run: str) -> tuple[Score, str, str]:
    """The measure of an attribute: one of `SCORES`, or "7-1", the judge's log odds of two classes."""
    if attribute in SCORES:
        return SCORES[attribute]
    a, dash, b = attribute.partition("-")
    if not (dash and a.isdecimal() and b.isdecimal() and a != b):
        known = ", ".join(SCORES)
        raise UserError(
            f"no attribute {attribute}{suggest(attribute, SCORES)}; there are {known}, and two classes as 7-1"
        )
    from ign.classifier import judge

    config = trained(run)
    train, test = data.load(config), data.load(config, "test")
    classes = int(train.labels.max()) + 1
    if 0 < classes <= max(int(a), int(b)):
        raise UserError(f"--attribute {attribute}: the classes are 0 to {classes - 1}")
    judge_ = judge(train, test)

    def odds(x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        logs = judge_.probabilities(x).clamp_min(1e-6).log()
        return logs[:, int(a)] - logs[:, int(b)]

    return odds, b, a
