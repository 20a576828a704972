"""Exact search against a float64 brute force: every index, random and adversarial inputs, every method."""

import math

import numpy as np
import pytest
import torch
from paperkit import UserError
from paperkit.nearest import Index, Items, Patches, halving_sum, nearest

METHODS = ["blocks", "tree"]
ALPHAS = [math.inf, 5e-3, 1e-12]


# ---- The oracle: all distances in float64 NumPy, the same order of summation, argmin


def folded(x: np.ndarray) -> np.ndarray:
    if x.shape[-1] == 1:
        return x[..., 0]
    half = math.ceil(x.shape[-1] / 2)
    low = x[..., :half].copy()
    low[..., : x.shape[-1] - half] += x[..., half:]
    return folded(low)


def table(q: torch.Tensor, k: torch.Tensor) -> np.ndarray:
    q, k = q.double().numpy(), k.double().numpy()
    return np.stack([folded((row - k) ** 2) / q.shape[1] for row in q])


def brute(q: torch.Tensor, k: torch.Tensor, alpha: float = math.inf, valid: np.ndarray | None = None):
    distance = table(q, k)
    score = distance / (alpha + distance.min(0)) if math.isfinite(alpha) else distance.copy()
    if valid is not None:
        score[:, ~valid] = math.inf
    index = score.argmin(1)
    every = np.arange(len(index))
    return index, distance[every, index], score[every, index]


def unfolded(image: torch.Tensor, window: tuple[int, ...]) -> torch.Tensor:
    """Patches one by one, by slicing."""
    grid = [n - p + 1 for n, p in zip(image.shape[1:], window, strict=True)]
    corners = np.ndindex(*grid)
    return torch.stack(
        [image[:, *[slice(a, a + p) for a, p in zip(c, window, strict=True)]].flatten() for c in corners]
    )


def check(q, k, alpha=math.inf, oracle=None, valid=None, **options):
    qs = unfolded(q.image, q.window) if isinstance(q, Patches) else q
    ks = unfolded(k.image, k.window) if isinstance(k, Patches) else k
    index, distance, score = oracle or brute(qs, ks, alpha, valid)
    result = nearest(q, k, alpha, **options)
    np.testing.assert_array_equal(result.index.numpy(), index)
    np.testing.assert_array_equal(result.distance.numpy(), distance)
    np.testing.assert_array_equal(result.score.numpy(), score)
    return result


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A picture with a photograph's spectrum, more or less: few components carry most of the variance."""
    x = torch.randn(1, channels, height, width, generator=generator(seed))
    for size in (3, 5):
        x = torch.nn.functional.avg_pool2d(x, size, 1, size // 2) * size / 2
    return x[0].sigmoid()


def random_scales(seed: int) -> torch.Tensor:
    x = torch.randn(150, 12, generator=generator(seed), dtype=torch.float64)
    return x * 10.0 ** torch.randint(-20, 20, (150, 1), generator=generator(seed + 5))


def near_ties(seed: int) -> torch.Tensor:
    """Differences far below float32 resolution."""
    base = torch.rand(1, 20, generator=generator(9), dtype=torch.float64)
    return base + 1e-11 * torch.rand(120, 20, generator=generator(seed), dtype=torch.float64)


def with_outlier(seed: int) -> torch.Tensor:
    x = torch.randn(140, 10, generator=generator(seed))
    x[70] = 1e7
    return x


def whole_numbers(seed: int) -> torch.Tensor:
    return torch.randint(0, 3, (200, 4), generator=generator(seed)).float()


VECTORS = {
    "random": lambda seed: torch.randn(300, 147, generator=generator(seed)),
    "float64": lambda seed: torch.randn(180, 33, generator=generator(seed), dtype=torch.float64),
    "half": lambda seed: torch.randn(180, 9, generator=generator(seed)).half(),
    "one-number": lambda seed: torch.randn(200, 1, generator=generator(seed)),
    "whole-numbers": whole_numbers,
    "constant": lambda seed: torch.full((150, 8), 0.3 + 0 * seed),
    "constants-apart": lambda seed: torch.full((90, 8), 0.3 + 0.1 * seed),
    "near-ties": near_ties,
    "offset": lambda seed: 1e6 + torch.randn(150, 30, generator=generator(seed)),
    "offset-float64": lambda seed: 1e9 + torch.randn(150, 30, generator=generator(seed), dtype=torch.float64),
    "scales": random_scales,
    "outlier": with_outlier,
    "huge": lambda seed: 1e80 * torch.randn(90, 7, generator=generator(seed), dtype=torch.float64),
    "minute": lambda seed: 1e-200 * torch.randn(90, 7, generator=generator(seed), dtype=torch.float64),
    "few": lambda seed: torch.randn(3, 5, generator=generator(seed)),
    "one": lambda seed: torch.randn(1, 5, generator=generator(seed)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name, alpha, method):
    check(VECTORS[name](1), VECTORS[name](2), alpha, method=method)
    check(VECTORS[name](1), VECTORS[name](1)[:77], alpha, method=method)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", VECTORS)
def test_first_look_in_either_precision(name, alpha, quick, monkeypatch):
    """Whether this machine's bfloat16 is quick decides the time only."""
    monkeypatch.setattr("paperkit._nearest_blocks.bfloat16_is_quick", lambda: quick)
    check(VECTORS[name](1), VECTORS[name](2), alpha, method="blocks")


def tiled(seed: int) -> torch.Tensor:
    return smooth(3, 8, 8, seed).repeat(1, 3, 3)


def flat_parts(seed: int) -> torch.Tensor:
    image = smooth(3, 24, 26, seed)
    image[:, :14] = 1.0
    image[:, :, 15:] = 0.25
    return image


def quantized(seed: int) -> torch.Tensor:
    return (smooth(1, 26, 25, seed) * 8).round() / 8


IMAGES = {
    "smooth": lambda seed: smooth(3, 25 + seed, 24),
    "noise": lambda seed: torch.rand(3, 23 + seed, 24, generator=generator(seed)),
    "repeated": tiled,
    "flat-parts": flat_parts,
    "quantized": quantized,
    "constant": lambda seed: torch.full((3, 20, 21), 0.5),
    "float64": lambda seed: smooth(2, 22, 24, seed).double() + 1e5,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", IMAGES)
def test_image_patches(name, alpha, method):
    check(Patches(IMAGES[name](1), 7), Patches(IMAGES[name](2), 7), alpha, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", [math.inf, 1e-2])
def test_video_patches(alpha, method):
    q = torch.rand(3, 6, 9, 11, generator=generator(1))
    k = torch.rand(3, 5, 10, 9, generator=generator(2))
    check(Patches(q, (3, 4, 5)), Patches(k, (3, 4, 5)), alpha, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_patches_equal_vectors(method):
    image = smooth(3, 20, 22)
    for size in (1, (3, 5)):
        patches = Patches(image, size)
        vectors = torch.nn.functional.unfold(image[None], patches.window)[0].T.contiguous()
        check(patches, vectors, oracle=brute(vectors, vectors), method=method)
        check(vectors, patches, oracle=brute(vectors, vectors), method=method)


def test_views_and_other_layouts():
    """Channels last, strided and flipped memory, queries and keys of different precision."""
    image = smooth(3, 24, 20)
    last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    wide = smooth(3, 40, 40)[:, ::2, 1::2]
    for method in METHODS:
        check(Patches(last, 5), Patches(wide, 5), method=method)
        check(Patches(image.double() + 1e-9, 5), Patches(wide, 5), 1e-2, method=method)
        check(torch.randn(5, 90).T, torch.randn(5, 80, dtype=torch.float64).T, method=method)


# ---- Masks


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_masks(alpha, method):
    q, k = smooth(3, 20, 21, 1), flat_parts(2)
    mask = torch.rand(k.shape[1:], generator=generator(3)) > 0.01
    valid = unfolded(mask[None].float(), (4, 4)).all(1).numpy()
    assert 20 < valid.sum() < len(valid) - 20
    check(Patches(q, 4), Patches(k, 4, mask), alpha, valid=valid, method=method)
    check(Patches(q, 4), Patches(k, 4), alpha, valid=valid, key_mask=torch.from_numpy(valid), method=method)
    first = torch.arange(len(valid)) < 300
    both = valid & first.numpy()
    result = check(Patches(q, 4), Patches(k, 4, mask), alpha, valid=both, key_mask=first, method=method)
    if result.reverse is not None:
        assert (result.reverse.numpy()[~both] == -1).all()


def test_reverse_is_the_nearest_query():
    q, k = smooth(3, 20, 21, 1), smooth(3, 18, 22, 2)
    for method in METHODS:
        result = nearest(Patches(q, 5), Patches(k, 5), 1e-3, method=method)
        expected = table(unfolded(q, (5, 5)), unfolded(k, (5, 5))).argmin(0)
        np.testing.assert_array_equal(result.reverse.numpy(), expected)
        assert nearest(Patches(q, 5), Patches(k, 5), method=method).reverse is None


def test_smallest_alpha_gives_every_key_a_chance():
    """alpha -> 0: every S >= 1, and S = 1 for the query nearest to a key (gpnn spec 2.2)."""
    q, k = torch.randn(80, 6, generator=generator(1)), torch.randn(60, 6, generator=generator(2))
    for method in METHODS:
        result = check(q, k, 1e-100, method=method)
        assert result.score.min() == 1


# ---- What must not matter


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", [math.inf, 5e-3])
def test_neither_memory_nor_threads_nor_seeds_matter(alpha, method):
    q, k = Patches(flat_parts(1)[:, 10:], 5), Patches(flat_parts(2)[:, 8:], 5)
    reference = check(q, k, alpha, method=method)
    count = len(reference.index)
    keys = math.prod(k.grid)
    wild = torch.randint(-5, 2 * keys, (count, 3), generator=generator(1))
    back = torch.randint(-5, 2 * count, (keys,), generator=generator(2))
    threads = torch.get_num_threads()
    try:
        for number, memory in ((1, 2**18), (2, None)):
            torch.set_num_threads(number)
            for seeds in (None, wild, reference.index):
                other = nearest(q, k, alpha, memory=memory, seeds=seeds, reverse_seeds=back, method=method)
                for name in ("index", "distance", "score"):
                    assert torch.equal(getattr(other, name), getattr(reference, name))
                assert reference.reverse is None or torch.equal(other.reverse, reference.reverse)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", [math.inf, 1e-2])
def test_shares_of_several_threads(alpha, method):
    """Enough queries for each thread to take a share of its own; guesses and thread count come through."""
    q, k = torch.rand(2500, 6, generator=generator(1)), torch.rand(300, 6, generator=generator(2))
    seeds = torch.randint(-2, 310, (2500, 2), generator=generator(3))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        check(q, k, alpha, seeds=seeds, method=method)
        check(k, q, alpha, reverse_seeds=seeds, method=method)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def moving(y: torch.Tensor, steps: int = 6):
    """An image that changes less and less, the upper rows not at all, and the movement of its patches."""
    for step in range(steps):
        before = y
        y = y + 0.3 * 0.4**step * torch.randn(y.shape, generator=generator(step)).to(y)
        y[:, : 4 + step] = before[:, : 4 + step]
        moved = (unfolded(y, (3, 3)).double() - unfolded(before, (3, 3)).double()).square().mean(1)
        yield y, moved


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", IMAGES)
def test_moved_queries_find_what_a_new_search_finds(name, method):
    x = IMAGES[name](3)
    index = Index(Patches(x, 3), method=method)
    y = x + 0.2 * torch.randn(x.shape, generator=generator(9)).to(x)
    found = index.search(Patches(y, 3), slack=0.1)
    for z, moved in moving(y):
        found = index.again(Patches(z, 3), found, moved)
        best, distance, _ = brute(unfolded(z, (3, 3)), unfolded(x, (3, 3)))
        np.testing.assert_array_equal(found.index.numpy(), best)
        np.testing.assert_array_equal(found.distance.numpy(), distance)


def test_moved_queries_under_a_mask():
    x = smooth(3, 18, 21)
    mask = torch.ones(18, 21, dtype=torch.bool)
    mask[5:9, 7:15] = False
    keys = Patches(x, 3, mask)
    index = Index(keys, method="tree")
    found = index.search(Patches(x, 3), slack=0.1)
    valid = keys.valid()
    assert valid is not None
    for y, moved in moving(x):
        found = index.again(Patches(y, 3), found, moved)
        best, _, _ = brute(unfolded(y, (3, 3)), unfolded(x, (3, 3)), valid=valid.numpy())
        np.testing.assert_array_equal(found.index.numpy(), best)


@pytest.mark.parametrize("slack", [0.01, 0.1, 1.0])
def test_no_other_key_is_nearer_than_told(slack, monkeypatch):
    x, y = smooth(3, 18, 21), smooth(3, 18, 21, seed=1)
    index = Index(Patches(x, 3), method="tree")
    found, whole, searched = index.search(Patches(y, 3), slack=slack), Index._search, []

    def counted(self, items, *arguments):
        searched.append(items.count)
        return whole(self, items, *arguments)

    monkeypatch.setattr(Index, "_search", counted)
    for z, moved in moving(y):
        found = index.again(Patches(z, 3), found, moved, slack)
        apart = table(unfolded(z, (3, 3)), unfolded(x, (3, 3)))
        apart[np.arange(len(apart)), found.index.numpy()] = math.inf
        assert found.other is not None
        assert (found.other.numpy() <= apart.min(1) * (1 + 1e-9)).all()
    # At the end the queries move by less than the slack: most need no search.
    assert searched[-1] < len(found.index) / 2 < searched[0]


@pytest.mark.parametrize("method", METHODS)
def test_index_serves_many_searches(method):
    k = Patches(smooth(3, 20, 22, 2), 5)
    index = Index(k, method=method)
    for seed in (3, 4):
        q = Patches(smooth(3, 16 + seed, 18, seed), 5)
        for alpha in (math.inf, 1e-2, 1e-4):
            result = index.search(q, alpha)
            expected, _, _ = brute(unfolded(q.image, q.window), unfolded(k.image, k.window), alpha)
            np.testing.assert_array_equal(result.index.numpy(), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", [math.inf, 1e-2])
def test_queries_of_other_scales_than_the_keys(alpha, method):
    """The unit of the fast stage follows the larger side, in one index too."""
    k = 0.4 * torch.rand(90, 24, generator=generator(1), dtype=torch.float64)
    q = torch.rand(70, 24, generator=generator(2), dtype=torch.float64)
    index = Index(k, method=method)
    for scale in (0.1, 0.6, 1.0, 1e12, 1e-12, 1e30, 1.0, 1e-30):
        expected, _, score = brute(scale * q, k, alpha)
        result = index.search(scale * q, alpha)
        np.testing.assert_array_equal(result.index.numpy(), expected)
        np.testing.assert_array_equal(result.score.numpy(), score)
        check(scale * q, 1e-40 * k, alpha, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_reduced_precision_around_the_call_changes_nothing(method):
    q, k = torch.randn(200, 64, generator=generator(1)), torch.randn(200, 64, generator=generator(2))
    expected = brute(q, k)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            check(q, k, oracle=expected, method=method)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_inputs_stay_and_gradients_are_not_followed():
    q, k = torch.randn(50, 8, requires_grad=True), torch.randn(60, 8)
    kept = k.clone()
    for method in METHODS:
        assert not nearest(q, k, method=method).distance.requires_grad
        assert torch.equal(k, kept)


@pytest.mark.parametrize("name", IMAGES)
def test_repeated_patches_are_found_alike_with_and_without_a_compiler(name):
    x = IMAGES[name](0)
    items = Items(Patches(x, 3), "keys")
    rows = unfolded(x, (3, 3)) + 0.0
    first = {row.numpy().tobytes(): i for i, row in reversed(list(enumerate(rows)))}
    for threads in (0, 1, 2):
        kept = items.distinct(threads)
        assert kept.original(torch.arange(kept.count)).tolist() == sorted(first.values())


def test_halving_sum_is_a_sum():
    for width in (1, 2, 3, 147, 256):
        x = torch.rand(20, width, generator=generator(), dtype=torch.float64)
        torch.testing.assert_close(halving_sum(x.clone()), x.sum(1), rtol=1e-14, atol=0)


# ---- Bad input


IMAGE = torch.rand(3, 12, 12)
ROWS = torch.rand(9, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Patches(IMAGE, 13), "do not fit"),
        (lambda: Patches(IMAGE, 0), "do not fit"),
        (lambda: Patches(IMAGE, (3, 3, 3)), "do not fit"),
        (lambda: Patches(IMAGE, 3, torch.ones(11, 12, dtype=torch.bool)), "one bit per pixel"),
        (lambda: nearest(ROWS, ROWS[:, :3].contiguous()), "4 numbers on cpu, keys of 3"),
        (lambda: nearest(Patches(IMAGE, 3), Patches(IMAGE, 5)), "same patch size"),
        (lambda: nearest(ROWS[:0], ROWS), "none of them 0"),
        (lambda: nearest(ROWS, ROWS[:0]), "none of them 0"),
        (lambda: nearest(ROWS, ROWS * math.nan), "not finite"),
        (lambda: nearest(ROWS / 0, ROWS), "not finite"),
        (lambda: nearest(ROWS, ROWS.double() * 1e101), "not finite or above"),
        (lambda: nearest(ROWS, ROWS, 0.0), "alpha must be positive"),
        (lambda: nearest(ROWS, ROWS, -1.0), "alpha must be positive"),
        (lambda: nearest(ROWS, ROWS, math.nan), "alpha must be positive"),
        (lambda: nearest(ROWS, ROWS, key_mask=torch.zeros(9, dtype=torch.bool)), "leaves no key"),
        (lambda: nearest(ROWS, ROWS, key_mask=torch.ones(8, dtype=torch.bool)), "one bit per key"),
        (
            lambda: nearest(Patches(IMAGE, 3, torch.ones(12, 12) > 0), Patches(IMAGE, 3)),
            "queries take no mask",
        ),
        (lambda: nearest(ROWS, ROWS, seeds=torch.zeros(8, dtype=torch.long)), "seeds for 8 of 9"),
        (
            lambda: nearest(ROWS, ROWS, 1.0, reverse_seeds=torch.zeros(8, dtype=torch.long)),
            "reverse_seeds for 8",
        ),
        (lambda: nearest(ROWS, ROWS, memory=1000), "too small"),
        (lambda: nearest(ROWS, ROWS, method="magic"), "unknown method"),
        (lambda: Index(ROWS).again(ROWS, nearest(ROWS, ROWS), torch.zeros(8).double()), "8 moved queries, 9"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
