"""Why adaptation helps or harms: where the gap points, and where a step goes. For the claims' explanations.

All in the space of the signal (values, or probabilities of classes). With g = y1 - y0 the gap as a vector,
t = y - y0 what would have been right, and d what adaptation did to the prediction:

    aim    = <g, t> / <g, g>      how far along its gap a prediction should go: 1 is to y1
    along  = <g, d> / <g, g>      how far adaptation takes it
    aside  = |d - along g| / |g|  what it moves besides, which no gap asked for

The squared error changes by |g|^2 (along^2 - 2 along aim + aside^2) and what moves aside happens to gain.
"""

from collections.abc import Mapping, Sequence

import torch

from ittt.protocol import Task, Trial, Way, predictions

Cause = dict[str, float]


@torch.no_grad()
def cause(task: Task, trials: Sequence[Trial], level: str, method: str = "it3") -> Cause:
    """aim, along and aside of a method at one level, over all samples of all trials."""
    adapted = predictions(task, trials, Way(method, task.settings), level)
    sums = torch.zeros(4, dtype=torch.float64)
    for trial, after in zip(trials, adapted, strict=True):
        (x, labels), net = trial.tests[level], trial.net
        first = net.from_output(net(x))
        gap = (net.from_output(net(x, first)) - first).double()
        right, moved = net.from_target(labels) - first, net.from_output(after) - first
        sums += torch.stack(
            [(a * b).sum() for a, b in ((gap, gap), (gap, right), (gap, moved), (moved, moved))]
        )
    square, aim, along, length = sums.tolist()
    aside = max(0.0, length / square - (along / square) ** 2) ** 0.5
    return {"aim": aim / square, "along": along / square, "aside": aside}


def reason(found: Cause) -> str:
    """The larger of the two causes of harm, in words."""
    if found["aim"] <= 0:
        return "the second application points away from the truth"
    if found["along"] > 2 * found["aim"]:
        return "the step goes further along the gap than the truth lies"
    if found["aside"] > found["along"]:
        return "the step moves predictions further aside than along the gap"
    return "the step follows the gap, and the gap the truth"


def told(cells: Mapping[str, Cause]) -> str:
    """The causes of cells in words, those of one reason together."""
    groups: dict[str, list[str]] = {}
    for name, one in cells.items():
        figures = f"{name} (aim {one['aim']:.2f}, along {one['along']:.2f}, aside {one['aside']:.2f})"
        groups.setdefault(reason(one), []).append(figures)
    return " ".join(f"{words.capitalize()}: {'; '.join(each)}." for words, each in groups.items())
