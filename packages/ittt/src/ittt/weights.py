"""Which weights are adapted, by which optimiser, and with which statistics of batch norm."""

import contextlib
import fnmatch
from collections.abc import Iterator, Sequence

import torch
from paperkit import UserError, suggest
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ittt.settings import Settings

NAMED = ("all", "norm", "head", "encoder")


def chosen(net: nn.Module, settings: Settings) -> list[str]:
    """Names of the parameters of a network that are adapted.

    norm: those of layers whose class is called a norm; head: those of the last layer that has any (of an
    `ITTT`'s model); encoder: the others; else patterns as of file names, apart by commas. norm="batch-frozen"
    leaves out batch norm's affine. Whether a parameter requires gradient does not matter. Raises `UserError`
    when nothing is left.
    """
    owners = {name: name.rpartition(".")[0] for name, _ in net.named_parameters()}
    kinds = dict(net.named_modules())
    inside = {n: owner for n, owner in owners.items() if n.startswith("model.")} or owners
    head = list(inside.values())[-1:]
    which = settings.parameters
    if which == "all":
        names = list(owners)
    elif which == "norm":
        names = [name for name, owner in owners.items() if "Norm" in type(kinds[owner]).__name__]
    elif which in ("head", "encoder"):
        names = [name for name, owner in inside.items() if (owner in head) == (which == "head")]
    else:
        patterns = [pattern.strip() for pattern in which.split(",")]
        names = [name for name in owners if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    if settings.norm == "batch-frozen":
        names = [name for name in names if not isinstance(kinds[owners[name]], _BatchNorm)]
    if not names:
        hint = suggest(which, [*NAMED, *owners])
        raise UserError(f"parameters={which!r} chooses none{hint}: the network has {', '.join(owners)}")
    return names


@torch.no_grad()
def gathered(leaves: Sequence[Tensor]) -> list[Tensor]:
    """Move leaves, and gradients for them, into one tensor for each dtype and device; returns these.

    The leaves stay what they are, as parts of it: an optimiser of the whole takes one call where it took one
    for each, which for small networks is most of its time. A gradient is cleared in place, not set to None.
    """
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for leaf in leaves:
        groups.setdefault((leaf.dtype, leaf.device), []).append(leaf)
    found = []
    for group in groups.values():
        whole = torch.cat([leaf.detach().flatten() for leaf in group]).requires_grad_()
        whole.grad = torch.zeros_like(whole)
        sizes = [leaf.numel() for leaf in group]
        parts = zip(group, whole.detach().split(sizes), whole.grad.split(sizes), strict=True)
        for leaf, values, gradient in parts:
            leaf.data, leaf.grad = values.view_as(leaf), gradient.view_as(leaf)
        found.append(whole)
    return found


def optimiser_of(leaves: Sequence[Tensor], settings: Settings) -> torch.optim.Optimizer:
    """Adam, SGD, or SGD with momentum 0.9."""
    fused = leaves[0].device.type in ("cpu", "cuda") and all(leaf.is_floating_point() for leaf in leaves)
    if settings.optimiser == "adam":
        return torch.optim.Adam(list(leaves), settings.lr, fused=fused)
    momentum = 0.9 if settings.optimiser == "momentum" else 0.0
    return torch.optim.SGD(list(leaves), settings.lr, momentum=momentum, fused=fused)


@torch.no_grad()
def forget(optimiser: torch.optim.Optimizer) -> None:
    """Zero the moments and counts in place, which is what a fresh optimiser has."""
    kept = [value for state in optimiser.state.values() for value in state.values() if value is not None]
    if kept:
        torch._foreach_zero_(kept)


@contextlib.contextmanager
def batch_statistics(*nets: nn.Module) -> Iterator[None]:
    """Inside, batch norm uses the batch's own statistics; the stored ones stay bit-identical."""
    layers = {id(m): m for net in nets for m in net.modules() if isinstance(m, _BatchNorm)}.values()
    kept = [(layer, layer.running_mean, layer.running_var) for layer in layers]
    for layer, _, _ in kept:
        layer.running_mean = layer.running_var = None  # then even evaluation mode takes the batch's
    try:
        yield
    finally:
        for layer, mean, var in kept:
            layer.running_mean, layer.running_var = mean, var


@torch.no_grad()
def restate(net: nn.Module, batches: Sequence[Tensor]) -> None:
    """Replace the stored statistics of batch norm by the mean over `batches` of what net(x) sees.

    Training by Eq. 2 in two passes stores a mixture of f(x, y) and f(x, 0); an `ITTT` called on x alone
    stores those of f(x, 0), which is what predicts.
    """
    layers = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    kept = [(layer.training, layer.momentum) for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
        layer.momentum = None  # a plain mean over the batches
    for x in batches:
        net(x)
    for layer, (training, momentum) in zip(layers, kept, strict=True):
        layer.train(training)
        layer.momentum = momentum


def has_batch_norm(net: nn.Module) -> bool:
    """Whether a layer of it is batch norm."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


@torch.no_grad()
def copy_into(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Overwrite tensors in place, by one call where that is possible."""
    if targets:
        torch._foreach_copy_(list(targets), list(sources))
