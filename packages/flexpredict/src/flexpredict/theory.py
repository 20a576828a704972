"""Closed forms behind StoP: why the matrices are tied, and what the best predictor of a noisy position is.

Used by the claim `theory` and the tests. Everything is float64. Here `s` is the noise's standard deviation.
The linear model is F(m, c) = U m + V c with m = psi + A n; C = E[(y - U psi) s^T] and S = E[s s^T].
"""

import torch
from jaxtyping import Float
from torch import Tensor


def untied_flow(
    a: Float[Tensor, "p e"], u: Float[Tensor, "y p"], s: float, time: float
) -> Float[Tensor, "p e"]:
    """A after gradient flow on E|..|^2 when it has a matrix of its own: exp(-2 s^2 t U^T U) A.

    It decays to nothing where the predictor looks, and stays where it does not (A's null space of U).
    """
    return torch.linalg.matrix_exp(-2 * s**2 * time * u.T @ u) @ a


def tied_optimum(
    u: Float[Tensor, "y p"],
    v: Float[Tensor, "y p"],
    moments: Float[Tensor, "e e"],
    cross: Float[Tensor, "y e"],
    s: float,
) -> Float[Tensor, "p e"]:
    """The A that minimises the tied linear loss: V^T V A S + s^2 U^T U A = V^T C, solved as one system."""
    p, e = u.shape[1], len(moments)
    eye = torch.eye(e, dtype=u.dtype)
    system = torch.kron(v.T @ v, moments) + s**2 * torch.kron(u.T @ u, eye)
    return torch.linalg.solve(system, (v.T @ cross).reshape(-1)).reshape(p, e)


def ridge(moments: Float[Tensor, "e e"], cross: Float[Tensor, "y e"], s: float) -> Float[Tensor, "y e"]:
    """W A at the optimum where U = V = W: C (S + s^2 I)^-1, ridge regression with penalty s^2."""
    eye = torch.eye(len(moments), dtype=moments.dtype)
    return torch.linalg.solve(moments + s**2 * eye, cross.T).T


def tied_loss(
    a: Float[Tensor, "p e"],
    u: Float[Tensor, "y p"],
    v: Float[Tensor, "y p"],
    moments: Float[Tensor, "e e"],
    cross: Float[Tensor, "y e"],
    s: float,
) -> Float[Tensor, ""]:
    """The tied linear loss up to a constant: E|V A s - r|^2 + s^2 |U A|^2, with r = y - U psi."""
    va = v @ a
    return (va @ moments * va).sum() - 2 * (va * cross).sum() + s**2 * (u @ a).square().sum()


def posterior(
    r: Float[Tensor, "q p"],
    psi: Float[Tensor, "k p"],
    sigma: Float[Tensor, "p p"],
    prior: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, "q k"]:
    """P(cell k given the noisy position r), for Gaussian noise of covariance `sigma` and a flat prior.

    A direction without noise tells cells apart by any difference at all.
    """
    values, vectors = torch.linalg.eigh(sigma)
    floor = 1e-12 * max(float(values[-1]), 1e-12)
    whiten = vectors / values.clamp_min(floor).sqrt()
    score = -0.5 * torch.cdist(r @ whiten, psi @ whiten, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    return (score if prior is None else score + prior.log()).softmax(-1)


def best_prediction(
    r: Float[Tensor, "q p"],
    psi: Float[Tensor, "k p"],
    y: Float[Tensor, "k e"],
    sigma: Float[Tensor, "p p"],
    prior: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, "q e"]:
    """f*(r) = sum p(x) phi(r - x) E[Y given x] / sum p(x) phi(r - x) (prop. 3.2, normalised).

    Note: the paper's integral leaves out the denominator, which is right for a flat prior without borders.
    """
    return posterior(r, psi, sigma, prior) @ y


def two_cells(r: Float[Tensor, "q p"], x1: Float[Tensor, " p"], x2: Float[Tensor, " p"], s: float):
    """Weight of the first of two equally likely cells under noise of deviation s in every direction.

    sigmoid((|r - x2|^2 - |r - x1|^2) / (2 s^2)).
    """
    return torch.sigmoid(((r - x2).square().sum(-1) - (r - x1).square().sum(-1)) / (2 * s**2))


def smoothed(
    r: Float[Tensor, " q"], x: Float[Tensor, " k"], y: Float[Tensor, " k"], s: float
) -> Float[Tensor, " q"]:
    """The paper's form on a line of even cells: the sum of phi_s(x - r) E[Y given x] dx, not normalised."""
    kernel = torch.exp(-0.5 * ((r[:, None] - x) / s) ** 2) / (s * (2 * torch.pi) ** 0.5)
    return kernel @ y * float(x[1] - x[0])
