"""What other methods minimise at test time: entropies, activation statistics, rotations.

Each objective is `loss(net, x)` of a network and a batch, or None where the batch teaches nothing. Used by
`baselines`. Sources: TENT (Wang et al. 2021, arXiv 2006.10726), ETA, that is EATA without its Fisher term
(Niu et al. 2022, arXiv 2204.02610), MEMO (Zhang et al. 2022, arXiv 2110.09506), ActMAD (Mirza et al. 2023,
arXiv 2211.12870), TTT (Sun et al. 2020, arXiv 1909.13231). The objectives are from memory of these papers and
agree with the library torch-ttt where it has them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from paperkit import UserError, rng
from torch import Tensor, nn
from torch.nn import functional as F

from ittt.inputs import Batch
from ittt.model import ITTT

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""A random version of every input of a batch."""


def entropy(logits: Float[Tensor, "b k *space"]) -> Float[Tensor, "b *space"]:
    """Entropy of each predicted distribution, in nats. Raises `UserError` for fewer than two classes."""
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise UserError(
            f"entropies need logits of two classes or more, predictions have shape {tuple(logits.shape)}"
        )
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


class Entropy:
    """TENT: the mean entropy of the batch's predictions."""

    def loss(self, net: nn.Module, x: Batch) -> Float[Tensor, ""] | None:
        return entropy(net(x)).mean()

    def restart(self) -> None:
        """Forget earlier batches."""


class Agreement:
    """The negative inner product of y0 and y1 as probabilities: torch-ttt's MNIST example of IT3.

    Both applications are those of the network that moves. Confident agreement minimises it, so that it is
    akin to an entropy. `net` must be an `ITTT` of classes.
    """

    def loss(self, net: nn.Module, x: Batch) -> Float[Tensor, ""] | None:
        if not isinstance(net, ITTT):
            raise UserError("the inner product feeds predictions back: it needs an ITTT")
        first = net(x)
        entropy(first)  # refuses what are no classes
        second = net(x, net.from_output(first))
        return -(first.softmax(1) * second.softmax(1)).sum(1).mean()

    def restart(self) -> None:
        """Forget earlier batches."""


class Reliable:
    """ETA: entropy of confident and new predictions only, confident ones weighing more.

    A prediction counts when its entropy is below `share` ln k, and its cosine similarity with the average of
    earlier ones below `apart`; its weight is exp(share ln k - entropy).
    """

    def __init__(self, share: float = 0.4, apart: float = 0.05):
        self.share, self.apart = share, apart
        self.average: Tensor | None = None

    def loss(self, net: nn.Module, x: Batch) -> Float[Tensor, ""] | None:
        logits = net(x)
        uncertain, limit = entropy(logits), self.share * math.log(logits.shape[1])
        probabilities = logits.detach().softmax(1)
        kept = uncertain.detach() < limit
        if self.average is not None:
            alike = F.cosine_similarity(self.average[None], probabilities, dim=1)
            kept &= alike.abs() < self.apart
        if not bool(kept.any()):
            return None
        mean = probabilities[kept].mean(0)
        self.average = mean if self.average is None else 0.9 * self.average + 0.1 * mean
        weight = (limit - uncertain[kept].detach()).exp()
        return (weight * uncertain[kept]).mean()

    def restart(self) -> None:
        """Forget earlier batches."""
        self.average = None


class Marginal:
    """MEMO: entropy of the mean prediction over `n` random versions of an input, batch mean."""

    def __init__(self, augment: Augment, n: int = 8, seed: int = 0):
        self.augment, self.n, self.seed, self.drawn = augment, n, seed, 0

    def loss(self, net: nn.Module, x: Batch) -> Float[Tensor, ""] | None:
        if not isinstance(x, Tensor):
            raise UserError("MEMO augments tensors, no dicts or graphs")
        self.drawn += 1
        draw = rng.generator(self.seed, self.drawn, "versions")
        versions = torch.cat([self.augment(x, draw) for _ in range(self.n)])
        logits = net(versions)
        entropy(logits)  # refuses what are no classes
        logs = logits.log_softmax(1).view(self.n, len(x), -1).logsumexp(0) - math.log(self.n)
        return -(logs.exp() * logs).sum(1).mean()

    def restart(self) -> None:
        """Forget earlier batches; the versions go on, so that no two batches share theirs."""


class Activations:
    """ActMAD: L1 between the batch's mean and variance of activations and those of clean inputs.

    `layers` are names of modules; by default all norms, or without any all linear layers and convs but the
    last. Note: statistics are pooled over positions (`pooled`), so that a batch of one has a variance; the
    paper keeps them apart. Where even that leaves one value, only means are aligned.
    """

    def __init__(
        self, net: nn.Module, clean: Sequence[Batch], layers: Sequence[str] = (), pooled: bool = True
    ):
        self.layers, self.pooled = list(layers) or _observed(net), pooled
        known = dict(net.named_modules())
        if unknown := [name for name in self.layers if name not in known]:
            raise UserError(
                f"the network has no layer {unknown[0]!r}: it has {', '.join(filter(None, known))}"
            )
        if not clean:
            raise UserError("ActMAD compares with clean inputs: give at least one batch")
        self.reference = self._fit(net, clean)

    @torch.no_grad()
    def _fit(self, net: nn.Module, clean: Sequence[Batch]) -> dict[str, tuple[Tensor, Tensor]]:
        net.eval()
        rows: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        for x in clean:
            with captured(net, self.layers) as found:
                net(x)
            for name, h in found.items():
                rows[name].append(self._rows(h))
        joined = {name: torch.cat(parts) for name, parts in rows.items()}
        return {name: (h.mean(0), h.var(0)) for name, h in joined.items()}

    def _rows(self, h: Float[Tensor, "b c *space"]) -> Tensor:
        return h.movedim(1, -1).reshape(-1, h.shape[1]) if self.pooled and h.ndim > 2 else h

    def loss(self, net: nn.Module, x: Batch) -> Float[Tensor, ""] | None:
        with captured(net, self.layers) as found:
            net(x)
        total = []
        for name, h in found.items():
            rows, (mean, variance) = self._rows(h), self.reference[name]
            total.append((rows.mean(0) - mean).abs().mean())
            if len(rows) > 1:
                total.append((rows.var(0) - variance).abs().mean())
        return torch.stack(total).sum()

    def restart(self) -> None:
        """Forget earlier batches."""


class Rotation(nn.Module):
    """TTT: tell by how many quarter turns an image was rotated, from the features of one layer.

    The head is trained together with the network: add `loss(net, x)` to the training loss, and its parameters
    to the optimiser. At test time it stays as it is.
    """

    def __init__(self, layer: str, width: int):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 4)

    def loss(self, net: nn.Module, x: Batch) -> Float[Tensor, ""] | None:
        if not isinstance(x, Tensor) or x.ndim != 4:
            raise UserError("rotations need images (b, c, h, w)")
        if x.shape[2] != x.shape[3]:
            raise UserError(f"rotations need square images, these are {x.shape[2]} x {x.shape[3]}")
        turned = torch.cat([torch.rot90(x, turns, (2, 3)) for turns in range(4)])
        with captured(net, [self.layer]) as found:
            net(turned)
        h = found[self.layer]
        h = h.flatten(2).mean(2) if h.ndim > 2 else h
        return F.cross_entropy(self.head(h), torch.arange(4, device=h.device).repeat_interleave(len(x)))

    def restart(self) -> None:
        """Forget earlier batches."""


Objective = Entropy | Agreement | Reliable | Marginal | Activations | Rotation


def shifted(x: Float[Tensor, "b c h w"], draw: torch.Generator) -> Float[Tensor, "b c h w"]:
    """A version of every image: mirrored with probability 1/2, moved by up to an eighth of its side."""
    reach = max(1, x.shape[-1] // 8)
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    versions = []
    for image in padded:
        down, right = torch.randint(0, 2 * reach + 1, (2,), generator=draw).tolist()
        part = image[:, down : down + x.shape[2], right : right + x.shape[3]]
        versions.append(part.flip(-1) if float(torch.rand((), generator=draw)) < 0.5 else part)
    return torch.stack(versions)


@contextmanager
def captured(net: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, the outputs of the named modules at their last call."""
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: nn.Module, _given: tuple[Tensor, ...], h: Tensor) -> None:
            found[name] = h.clone()  # what follows may change it in place

        return hook

    handles = [net.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _observed(net: nn.Module) -> list[str]:
    """The norms of a network, or its linear layers and convs but the last."""
    modules = dict(net.named_modules())
    norms = [name for name, module in modules.items() if "Norm" in type(module).__name__]
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = norms or [name for name, module in modules.items() if isinstance(module, kinds)][:-1]
    if not layers:
        raise UserError("no layer to observe: name some by layers=")
    return layers
