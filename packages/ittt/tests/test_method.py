"""Gaps, moving averages and trust regions by hand."""

import math

import pytest
import torch
from ittt.method import (
    GAPS,
    PLAIN,
    distance,
    follow,
    gap_of_distributions,
    gap_of_values,
    mean_of,
    norm,
    project,
)
from ittt.task import Binary, Classes, Regression
from ittt.weights import gathered
from torch.nn import functional as F

P, Q = [0.7, 0.2, 0.1], [0.1, 0.6, 0.3]
MIXED = [(p + q) / 2 for p, q in zip(P, Q, strict=True)]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


BY_HAND = {
    "l1-prob": 0.6 + 0.4 + 0.2,
    "l2-prob": 0.36 + 0.16 + 0.04,
    "kl": kl(Q, P),
    "js": (kl(P, MIXED) + kl(Q, MIXED)) / 2,
    "legacy-js": (kl(MIXED, P) + kl(MIXED, Q)) / 2,
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_gap_is_written_by_hand():
    assert {*BY_HAND, *PLAIN} == set(GAPS)


@pytest.mark.parametrize("kind", BY_HAND)
def test_gap_of_two_distributions_by_hand(kind):
    first, second = (torch.tensor([p], dtype=torch.float64).log() for p in (P, Q))
    assert float(gap_of_distributions(first, second, kind)) == pytest.approx(BY_HAND[kind])
    assert float(gap_of_distributions(first, first, kind)) == 0
    logits = first + 3  # logits are log-probabilities up to a constant
    assert float(Classes(kind).gap(logits, second)) == pytest.approx(BY_HAND[kind])


@pytest.mark.parametrize("kind", BY_HAND)
def test_gaps_of_distributions_are_not_negative_and_average_over_positions(kind):
    first, second = (5 * draw(6, 4, 3, 2, seed=seed) for seed in (0, 1))
    found = Classes(kind).gap(first, second)
    assert float(found.min()) > 0
    flat = [side.movedim(1, -1).reshape(-1, 4) for side in (first, second)]
    torch.testing.assert_close(found, Classes(kind).gap(*flat).view(6, -1).mean(1))
    close = Classes(kind).gap(first, first + 1e-9 * second)
    assert float(close.min()) >= 0
    if kind == "js":
        torch.testing.assert_close(found, Classes(kind).gap(second, first))
        assert float(Classes(kind).gap(torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 99.0]]))) == (
            pytest.approx(math.log(2))
        )


def test_gap_of_numbers_and_of_masks():
    a, b = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, -2.0], [0.0, 1.0]])
    assert gap_of_values(a, b, "l1").tolist() == [3.0, 0.5]
    assert gap_of_values(a, b, "l2").tolist() == [10.0, 0.5]
    assert Regression().gap(a[:, 0], b[:, 0]).tolist() == [2.0, 0.0]
    logits = [draw(3, 2, 4, 4, seed=seed) for seed in (0, 1)]
    pair = [torch.stack([side, torch.zeros_like(side)], 1) for side in logits]  # softmax of (z, 0) = sigmoid
    torch.testing.assert_close(Binary().gap(*logits), Classes().gap(*pair))
    assert Binary("l1").gap(*logits).shape == (3,)


def test_losses_are_the_fields_own():
    logits, labels = draw(5, 3), torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(Classes().loss(logits, labels), F.cross_entropy(logits, labels))
    mask = (draw(5, 3, seed=1) > 0).double()
    expected = -(mask * logits.sigmoid().log() + (1 - mask) * (1 - logits.sigmoid()).log()).mean()
    torch.testing.assert_close(Binary().loss(logits, mask), expected)
    torch.testing.assert_close(Regression().loss(logits, mask), ((logits - mask) ** 2).mean())


def test_smoothed_labels_of_masks():
    assert Binary(smoothing=0.2).from_target(torch.tensor([[1.0, 0.0]]), 2).tolist() == [
        [pytest.approx(0.9), pytest.approx(0.1)]
    ]


def test_average_follows_by_its_share():
    anchor, views = [draw(2, 3)], [draw(2, 3, seed=1)]
    expected = 0.8 * anchor[0] + 0.2 * views[0]
    follow(anchor, views, 0.8)
    torch.testing.assert_close(anchor[0], expected)
    still = anchor[0].clone()
    follow(anchor, views, 1.0)
    assert torch.equal(anchor[0], still)
    follow(anchor, views, 0.0)
    assert torch.equal(anchor[0], views[0])
    follow([], views, 0.5)


def test_projection_brings_back_who_is_too_far_and_nobody_else():
    source = [draw(3), draw(2, 2, seed=1)]
    steps = [draw(4, 3, seed=2), draw(4, 2, 2, seed=3)]
    views = [origin + step for origin, step in zip(source, steps, strict=True)]
    away = distance(views, source)
    flat = torch.cat([step.flatten(1) for step in steps], 1)
    torch.testing.assert_close(away, flat.norm(dim=1))
    assert norm(source) == pytest.approx(float(torch.cat([part.flatten() for part in source]).norm()))
    radius = float(away.sort().values[:3].mean())
    near = away <= radius
    assert 0 < int(near.sum()) < 4
    before = [view.clone() for view in views]
    project(views, source, radius)
    torch.testing.assert_close(distance(views, source), away.clamp_max(radius))
    for view, old, origin in zip(views, before, source, strict=True):
        assert torch.equal(view[near], old[near])
        share = (radius / away)[~near].view(-1, *[1] * origin.ndim)
        torch.testing.assert_close(view[~near], origin + (old - origin)[~near] * share)
    project([origin[None].clone() for origin in source], source, 0.0)  # nobody has moved


def test_mean_of_a_batch_of_some_and_of_each():
    gaps, some = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True])
    assert mean_of(gaps, None, 1).tolist() == [3.0]
    assert mean_of(gaps, some, 1).tolist() == [3.5]
    assert mean_of(gaps, None, 3).tolist() == [1.0, 2.0, 6.0]


def test_gathered_leaves_share_one_memory_with_their_gradients():
    leaves = [torch.randn(2, 3).requires_grad_(), torch.randn(4).requires_grad_()]
    leaves.append(torch.randn(2, dtype=torch.float64).requires_grad_())
    before = [leaf.detach().clone() for leaf in leaves]
    whole = gathered(leaves)
    assert [part.shape[0] for part in whole] == [10, 2]
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))
    sum((leaf.double() ** 2).sum() for leaf in leaves).backward()
    torch.testing.assert_close(whole[0].grad, 2 * torch.cat([leaf.detach().flatten() for leaf in leaves[:2]]))
    torch.optim.SGD(whole, 0.5).step()
    assert all(float(leaf.detach().abs().max()) < 1e-6 for leaf in leaves)
