"""The equations of "Idempotent Generative Network" (Shocher et al., ICLR 2024, arXiv 2311.01462).

| symbol        | here        | meaning                                                | source             |
|---------------|-------------|--------------------------------------------------------|--------------------|
| f             | `net`       | one network that maps data space to itself             | section 2          |
| x             | `x`         | data, in [-1, 1]                                       | section 2          |
| z             | `z`         | source noise of the data's shape                       | section 2          |
| f'            | `frozen`    | a copy of f that is a constant in this step            | section 2, listing |
| D             | `distance`  | metric on data space, mean over a sample's elements    | section 2          |
| d(y)          | `drift`     | D(f(y), y): how far f moves y; 0 on the manifold       | section 2          |
| L_rec         | `rec`       | d(x): data are fixed points                            | section 2          |
| L_idem        | `idem`      | D(f'(f(z)), f(z)): f(z) moves onto the manifold; trains | section 2          |
|               |             | the inner application only                             |                    |
| L_tight       | `tight`     | -D(f(f'(z)), f'(z)): the manifold leaves f(z); trains  | section 2          |
|               |             | the outer application only                             |                    |
| a, R          | `clamp`,    | L_tight <- tanh(L_tight / (a R)) a R, a smooth bound   | section 2          |
|               | `level`     |                                                        |                    |
| l_r, l_i, l_t | `Objective` | weights of the three losses                            | listing, app. C    |

L_idem and -L_tight have one value and two gradient paths. The routed gradient equals that of
l_r d(x) + l_i d(f(z)) - (l_i + l_t) d(sg f(z)), sg = stop-gradient (`single_graph`, the tests' oracle).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Metric = Literal["l1", "l2"]
Routing = Literal["right", "idem_to_outer", "tight_to_inner"]
"""Which applications the losses train; all but "right" are deliberate errors, for the ablation."""
Roles = tuple[str, ...]
"""What the equal parts of a batch are: "x" (data), "z" (noise), "fz" (an output of f)."""


# ---- the losses, section 2 ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """Weights and metric of the total loss l_r L_rec + l_i L_idem + l_t L_tight.

    `clamp` is the paper's a (0 = off). Its level R is d of the paired datum (`reference="x"`, as the public
    CelebA codes do) or of the noise (`"z"`, as the formula reads literally); `clamp_gradient` lets R, taken
    from x, carry gradient.
    """

    rec: float = 1.0
    idem: float = 1.0
    tight: float = 0.1
    metric: Metric = "l2"
    clamp: float = 0.0
    reference: Literal["x", "z"] = "x"
    clamp_gradient: bool = False

    def __post_init__(self):
        if self.clamp_gradient and self.reference == "z":
            # With gradient the loss would pay for pushing f(z) away from z.
            raise ValueError("the clamp's level may carry gradient only with reference x")

    def players(self) -> tuple["Objective", "Objective"]:
        """The two players of the theorem, for alternating steps: A shapes the drift, B moves f(z)."""
        return replace(self, idem=0.0), replace(self, rec=0.0, tight=0.0)


@dataclass(frozen=True)
class Losses:
    """Batch means of d(x), d(f(z)) and of the (clamped) tightness loss, without gradient."""

    rec: Float[Tensor, ""]
    idem: Float[Tensor, ""]
    tight: Float[Tensor, ""]

    def total(self, objective: Objective) -> Float[Tensor, ""]:
        """l_r L_rec + l_i L_idem + l_t L_tight."""
        return objective.rec * self.rec + objective.idem * self.idem + objective.tight * self.tight


def distance(a: Float[Tensor, "b ..."], b: Float[Tensor, "b ..."], metric: Metric) -> Float[Tensor, " b"]:
    """D(a, b) of each pair: mean absolute (l1) or squared (l2) difference over the elements."""
    difference = (a - b).flatten(1)
    return difference.abs().mean(1) if metric == "l1" else difference.square().mean(1)


def smooth_clamp(loss: Float[Tensor, " b"], level: Float[Tensor, " b"], ratio: float) -> Float[Tensor, " b"]:
    """tanh(loss / (a R)) a R for each sample: equal to `loss` near 0, bounded by a R (section 2)."""
    bound = (ratio * level).clamp_min(torch.finfo(level.dtype).tiny)
    return torch.tanh(loss / bound) * bound


def tightness(
    outward: Float[Tensor, " b"], level: Float[Tensor, " b"], objective: Objective
) -> Float[Tensor, " b"]:
    """L_tight of each sample from d = D(f(f'(z)), f'(z)) and the clamp's level R."""
    return -smooth_clamp(outward, level, objective.clamp) if objective.clamp else -outward


# ---- one step's gradients, three ways ----------------------------------------------------------------------
# Each engine adds the routed gradient to the parameters' .grad and returns the values; only costs differ.
# x and z pair by index in the clamp. Where a `target` is given, L_rec is D(f(x), target): x may be noisy.


class Naive:
    """As every public implementation: a second network, refreshed each step, and four applications of f.

    For the ablation alone, `routing` lets L_idem train the outer application too (`idem_to_outer`: it then
    pulls the manifold out to f(z)), or L_tight the inner one (`tight_to_inner`: f(z) is pushed off it).
    """

    def __init__(self, net: nn.Module, copy: nn.Module, routing: Routing = "right"):
        self.net, self.frozen, self.routing = net, copy.requires_grad_(False), routing

    def step(
        self,
        x: Float[Tensor, "b ..."],
        z: Float[Tensor, "b ..."],
        objective: Objective,
        target: Float[Tensor, "b ..."] | None = None,
    ) -> Losses:
        """Add the gradient of the total loss on (x, z) to `.grad`."""
        self.frozen.load_state_dict(self.net.state_dict())
        outer = self.net if self.routing == "idem_to_outer" else self.frozen
        fx, h = self.net(x, ("x",)), self.net(z, ("z",))
        rec = distance(fx, x if target is None else target, objective.metric)
        idem = distance(outer(h, ("fz",)), h, objective.metric)
        still = h if self.routing == "tight_to_inner" else h.detach()
        outward = distance(self.net(still, ("fz",)), still, objective.metric)
        level = _level(rec, h, z, objective)
        tight = tightness(outward, level if objective.clamp_gradient else level.detach(), objective)
        losses = Losses(rec.mean(), idem.mean(), tight.mean())
        losses.total(objective).backward()
        return _values(losses)


class Shared:
    """The same gradient with the second application computed once, exact for every network.

    w = f(y) at y = sg f(z) serves L_tight through its weights and L_idem through its input. With `joint` the
    data and the noise go through f in one call, each with its own statistics (exact for `model`'s norms).
    """

    def __init__(self, net: nn.Module, joint: bool = False):
        self.net, self.joint = net, joint

    def step(
        self,
        x: Float[Tensor, "b ..."],
        z: Float[Tensor, "b ..."],
        objective: Objective,
        target: Float[Tensor, "b ..."] | None = None,
    ) -> Losses:
        """Add the gradient of the total loss on (x, z) to `.grad`."""
        if self.joint:
            fx, h = self.net(torch.cat([x, z]), ("x", "z")).chunk(2)
        else:
            fx, h = self.net(x, ("x",)), self.net(z, ("z",))
        rec = distance(fx, x if target is None else target, objective.metric)
        y = h.detach().requires_grad_()
        outward = distance(self.net(y, ("fz",)), y, objective.metric)
        level = _level(rec, h, z, objective).detach().requires_grad_(objective.clamp_gradient)
        tight = tightness(outward, level, objective)
        pull = self._outer(outward, tight, y, level, objective)
        # The inner applications in one sweep; what reaches f(z) is l_i dL_idem/df(z) alone.
        push = torch.full_like(rec, objective.rec / len(rec))
        if level.grad is not None:
            push = push + level.grad
        torch.autograd.backward([rec, h], [push, pull])
        return _values(Losses(rec.mean(), outward.mean(), tight.mean()))

    def _outer(self, outward, tight, y, level, objective: Objective) -> Float[Tensor, "b ..."]:
        """Backward through the second application; returns l_i dL_idem/dy, weights receive l_t L_tight."""
        weights = [p for p in self.net.parameters() if p.requires_grad]
        leaves = weights + ([level] if level.requires_grad else [])
        if objective.tight and not objective.clamp:
            # One sweep gives both, as the two losses differ by a factor.
            (objective.tight * tight.mean()).backward(inputs=[*leaves, y])
            return y.grad * (-objective.idem / objective.tight)
        (pull,) = torch.autograd.grad(outward.mean(), y, retain_graph=bool(objective.tight))
        if objective.tight:
            (objective.tight * tight.mean()).backward(inputs=leaves)
        return objective.idem * pull


def single_graph(
    net: nn.Module, x: Float[Tensor, "b ..."], z: Float[Tensor, "b ..."], objective: Objective
) -> Float[Tensor, ""]:
    """l_r d(x) + l_i d(f(z)) - (l_i + l_t) d(sg f(z)): its gradient is the routed one (no clamp)."""
    h = net(z, ("z",))
    still = h.detach()
    d_x = distance(net(x, ("x",)), x, objective.metric).mean()
    d_h = distance(net(h, ("fz",)), h, objective.metric).mean()
    d_still = distance(net(still, ("fz",)), still, objective.metric).mean()
    return objective.rec * d_x + objective.idem * d_h - (objective.idem + objective.tight) * d_still


def _level(rec, h, z, objective: Objective) -> Float[Tensor, " b"]:
    return rec if objective.reference == "x" else distance(h, z, objective.metric)


def _values(losses: Losses) -> Losses:
    return Losses(losses.rec.detach(), losses.idem.detach(), losses.tight.detach())


# ---- what a trained f offers -------------------------------------------------------------------------------

Apply = Callable[[Tensor, Roles], Tensor]


def applications(net: Apply, z: Float[Tensor, "b ..."], k: int, first: str = "z") -> list[Tensor]:
    """[f(z), f(f(z)), …], k of them; `first` is the role of the input ("x" for data to project)."""
    outputs = []
    for step in range(k):
        z = net(z, (first if step == 0 else "fz",))
        outputs.append(z)
    return outputs


def drift(
    net: Apply, y: Float[Tensor, "b ..."], metric: Metric = "l2", role: str = "x"
) -> Float[Tensor, " b"]:
    """d(y) = D(f(y), y) of each sample: 0 on the estimated manifold (section 2)."""
    return distance(net(y, (role,)), y, metric)


# ---- moving in noise space, section 4 ----------------------------------------------------------------------


def path(
    a: Float[Tensor, "n ..."], b: Float[Tensor, "n ..."], count: int, spherical: bool = False
) -> Float[Tensor, "n k ..."]:
    """`count` points from each a to its b, both ends included: a straight line, or an arc about the origin.

    Between independent Gaussian noises the line's middle has half their variance, the arc keeps it.
    """
    t = torch.linspace(0, 1, count, dtype=a.dtype, device=a.device)
    if not spherical:
        return torch.stack([torch.lerp(a, b, weight) for weight in t], 1)
    cosine = torch.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = cosine.acos().view(-1, *[1] * (a.ndim - 1))
    return (
        torch.stack([((1 - s) * angle).sin() * a + (s * angle).sin() * b for s in t], 1)
        / angle.sin()[:, None]
    )


def attribute(having: Float[Tensor, "n ..."], lacking: Float[Tensor, "m ..."]) -> Float[Tensor, "..."]:
    """The direction of an attribute: mean noise that gives it minus mean noise that does not, of length 1."""
    direction = having.mean(0) - lacking.mean(0)
    return direction / direction.norm()


def move(
    z: Float[Tensor, "n ..."], direction: Float[Tensor, "..."], strength: float
) -> Float[Tensor, "n ..."]:
    """z + strength * direction, brought back to the length of z, so that it stays likely noise."""
    moved = z + strength * direction
    lengths = z.flatten(1).norm(dim=1) / moved.flatten(1).norm(dim=1)
    return moved * lengths.view(-1, *[1] * (z.ndim - 1))


# ---- source noise, section 2 -------------------------------------------------------------------------------


class Noise(nn.Module):
    """Source noise of shape (c, h, w): white, or with the data's mean and deviation per frequency.

    `fft` draws real and imaginary parts independently and takes the real part of the inverse transform, as
    the public codes do; that halves the fluctuation's power wherever a frequency is not its own conjugate.
    `fft_hermitian` restores it, so that the second moments are the data's.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, kind: Literal["gaussian", "fft", "fft_hermitian"], shape: tuple[int, int, int]):
        super().__init__()
        self.kind, self.shape = kind, shape
        if kind != "gaussian":
            self.register_buffer("mean", torch.zeros(2, *shape))
            self.register_buffer("deviation", torch.ones(2, *shape))

    @torch.no_grad()
    def fit(self, batches: Iterable[Float[Tensor, "_ c h w"]]) -> "Noise":
        """Take the moments of the spectrum over the data, in float64; returns self."""
        if self.kind == "gaussian":
            return self
        count, total, squares = 0, torch.zeros(2, *self.shape).double(), 0.0
        for batch in batches:
            spectrum = torch.view_as_real(torch.fft.fft2(batch.double())).movedim(-1, 1)
            count, total = count + len(batch), total + spectrum.sum(0)
            squares = squares + spectrum.square().sum(0)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
        if self.kind == "fft_hermitian":
            deviation = torch.where(self_conjugate(self.shape), deviation, deviation * 2**0.5)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        return self

    def forward(self, white: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c h w"]:
        """Noise from standard normal numbers: k = `channels`, which is c (gaussian) or 2 c."""
        if self.kind == "gaussian":
            return white
        spectrum = self.mean + self.deviation * white.unflatten(1, (2, self.shape[0]))
        return torch.fft.ifft2(torch.complex(spectrum[:, 0], spectrum[:, 1])).real

    @property
    def channels(self) -> int:
        """How many channels of white noise `forward` takes."""
        return self.shape[0] * (1 if self.kind == "gaussian" else 2)


def self_conjugate(shape: tuple[int, int, int]) -> Tensor:
    """Which frequencies of a (c, h, w) spectrum are their own conjugate: 2k = 0 modulo the size."""
    rows, columns = (2 * torch.arange(n) % n == 0 for n in shape[1:])
    return (rows[:, None] & columns[None]).expand(shape)
