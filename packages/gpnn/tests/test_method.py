"""The method against a slow float64 reference of one step and of the whole pass, and its invariants."""

import math

import pytest
import torch
from gpnn.folding import fold_compiled
from gpnn.method import (
    KeySet,
    LevelFacts,
    Settings,
    Source,
    coarse_to_fine,
    depth,
    fold,
    fold_torch,
    fold_weights,
    key_set,
    level_size,
    pnn_step,
    pyramid,
    up,
)
from gpnn.search import matcher, movement, rows
from paperkit import UserError
from paperkit.data import photograph
from paperkit.resize import resize

SMALL = Settings(levels=2, steps=3)


def picture(name: str, height: int, width: int) -> torch.Tensor:
    """A real photograph, small, in [0, 1], float64."""
    return resize(photograph(name).double() / 255, size=(height, width)).clamp(0, 1)


# ---- the reference: lists of patches, all pairs, float64


def all_patches(x, p):
    _, h, w = x.shape
    return [x[:, i : i + p, j : j + p] for i in range(h - p + 1) for j in range(w - p + 1)]


def slow_fold(values, shape, p, kind):
    total, weight = torch.zeros(shape).double(), torch.zeros(shape[1:]).double()
    g = [math.exp(-(u**2) / (2 * 1.7**2)) for u in torch.linspace(-1, 1, p, dtype=torch.float64).tolist()]
    g = g if kind == "gaussian" else [1.0] * p
    seen: dict[tuple[int, int], list] = {}
    at = iter(values)
    for i in range(shape[1] - p + 1):
        for j in range(shape[2] - p + 1):
            value = next(at)
            for u in range(p):
                for v in range(p):
                    seen.setdefault((i + u, j + v), []).append(value[:, u, v])
                    total[:, i + u, j + v] += g[u] * g[v] * value[:, u, v]
                    weight[i + u, j + v] += g[u] * g[v]
    if kind == "median":
        for (i, j), found in seen.items():
            total[:, i, j], weight[i, j] = torch.stack(found).median(0).values, 1
    return total / weight


def slow_step(y, keys, values, p, alpha, valid=None, kind="gaussian"):
    """Steps 1 to 5 of the spec's 2.2 as they stand there; returns the image and the chosen keys."""
    q = torch.stack([patch.flatten() for patch in all_patches(y, p)])
    k = torch.stack([patch.flatten() for patch in all_patches(keys, p)])
    d = (q[:, None] - k[None]).square().mean(2)
    s = d if math.isinf(alpha) else d / (alpha + d.min(0).values)
    if valid is not None:
        s = torch.where(valid, s, math.inf)
    best = s.argmin(1)  # the first of equals
    chosen = [all_patches(values, p)[j] for j in best.tolist()]
    return slow_fold(chosen, y.shape, p, kind), best


def slow_pass(x, guess, size, settings):
    """The spec's 2.3 for one source without a mask."""
    images = pyramid(x, settings.levels, settings.ratio)
    y = guess
    for n in range(settings.levels, -1, -1):
        for t in range(settings.coarse_steps if n == settings.levels else settings.steps):
            keys, values = images[n], images[n]
            if n < settings.levels and not (settings.keys == "switch" and t > 0):
                blurred = up(images[n + 1], tuple(images[n].shape[1:]), settings.ratio)
                keys = blurred
                if settings.keys == "both":
                    y = slow_union_step(y, [blurred, images[n]], images[n], settings)
                    continue
            y, _ = slow_step(y, keys, values, settings.patch, settings.alpha)
        if n:
            y = up(y, level_size(size, settings.ratio, n - 1), settings.ratio)
    return y


def slow_union_step(y, key_images, values, settings):
    p = settings.patch
    q = torch.stack([patch.flatten() for patch in all_patches(y, p)])
    k = torch.stack([patch.flatten() for image in key_images for patch in all_patches(image, p)])
    v = [patch for _ in key_images for patch in all_patches(values, p)]
    d = (q[:, None] - k[None]).square().mean(2)
    s = d if math.isinf(settings.alpha) else d / (settings.alpha + d.min(0).values)
    return slow_fold([v[j] for j in s.argmin(1).tolist()], y.shape, p, "gaussian")


# ---- one step


@pytest.mark.parametrize("alpha", [math.inf, 0.1, 5e-3, 1e-4])
@pytest.mark.parametrize("name", ["coffee", "brick"])
def test_step_equals_reference(name, alpha):
    x = picture(name, 22, 26)
    y = x.flip(2) + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    keys = resize(resize(x, scale=0.75), size=(22, 26))
    expected, best = slow_step(y, keys, x, 7, alpha)
    image, field, _ = pnn_step(y, matcher(Frame(keys), 7, "exact", 2**26), x, Settings(alpha=alpha), None)
    assert torch.equal(field.flatten(), best)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-12)


class Frame:
    """Keys without a key set around them."""

    def __init__(self, keys, mask=None):
        self.keys, self.mask = keys, mask


def test_step_with_a_mask_equals_reference():
    x = picture("chelsea", 20, 24)
    mask = torch.ones(20, 24, dtype=torch.bool)
    mask[5:9, 10:14] = False
    valid = torch.tensor([bool(patch.all()) for patch in all_patches(mask[None], 7)])
    y = x.flip(1)
    expected, best = slow_step(y, x, x, 7, 5e-3, valid)
    image, field, _ = pnn_step(y, matcher(Frame(x, mask), 7, "exact", 2**26), x, Settings(alpha=5e-3), None)
    # The reference takes min_i D over all queries for every key, as the method does.
    assert torch.equal(field.flatten(), best)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "mean", "median"])
@pytest.mark.parametrize("patch", [1, 2, 3, 7])
def test_fold_equals_reference(kind, patch):
    draw = torch.Generator().manual_seed(patch)
    values = torch.rand(2, 12, 11, generator=draw).double()
    grid = (6, 9)
    field = torch.randint((12 - patch + 1) * (11 - patch + 1), grid, generator=draw)
    chosen = [all_patches(values, patch)[j] for j in field.flatten().tolist()]
    expected = slow_fold(chosen, (2, grid[0] + patch - 1, grid[1] + patch - 1), patch, kind)
    torch.testing.assert_close(fold(values, field, patch, kind), expected, rtol=0, atol=1e-13)


def test_fold_of_the_own_patches_is_exact_in_float32():
    x = picture("coffee", 30, 40).float()
    field = torch.arange(24 * 34).view(24, 34)
    for kind in ("gaussian", "mean", "median"):
        assert torch.equal(fold(x, field, 7, kind), x)


def test_fold_weight_of_a_corner():
    g = fold_weights(7)
    assert float(g[0] * g[0] / g[3] ** 2) == pytest.approx(math.exp(-1 / 1.7**2))


@pytest.mark.parametrize("alpha", [math.inf, 5e-3, 1e-6])
def test_an_image_among_its_own_patches_stays(alpha):
    x = picture("astronaut", 24, 30).float()
    image, _, distance = pnn_step(x, matcher(Frame(x), 7, "exact", 2**26), x, Settings(alpha=alpha), None)
    assert torch.equal(image, x)
    assert float(distance.max()) == 0


def test_score_is_at_least_one_as_alpha_falls():
    x, y = picture("coffee", 20, 20), picture("chelsea", 20, 20)
    found = matcher(Frame(x), 7, "exact", 2**26).search(y, 1e-12, None)
    assert float(found.score.min()) >= 1 - 1e-6
    assert float(found.score.max()) < math.inf


# ---- whole pass


@pytest.mark.parametrize(
    ("alpha", "keys"), [(math.inf, "blurred"), (5e-3, "switch"), (5e-3, "both"), (math.inf, "both")]
)
def test_whole_pass_equals_reference(alpha, keys):
    x = picture("coffee", 22, 26)
    settings = Settings(alpha=alpha, keys=keys, levels=2, coarse_steps=2, steps=3, patch=5)
    guess = pyramid(x, 2, 0.75)[-1]
    guess = guess + 0.3 * torch.randn(guess.shape, generator=torch.Generator().manual_seed(3)).double()
    ours = coarse_to_fine([Source.of(x, settings)], [guess], (22, 26), settings)[0]
    torch.testing.assert_close(ours.image, slow_pass(x, guess, (22, 26), settings), rtol=0, atol=1e-11)


def test_another_output_size_equals_reference():
    x = picture("rocket", 22, 24)
    settings = Settings(alpha=1e-3, ratio=0.8, levels=2, coarse_steps=3, steps=2)
    size = (22, 34)
    guess = pyramid(resize(x, size=size), 2, 0.8)[-1]
    ours = coarse_to_fine([Source.of(x, settings)], [guess], size, settings)[0]
    torch.testing.assert_close(ours.image, slow_pass(x, guess, size, settings), rtol=0, atol=1e-11)


@pytest.mark.parametrize("search", ["exact", "pca"])
def test_methods_and_memory_do_not_change_the_output(search):
    x = picture("brick", 28, 31).float()
    expected = None
    for memory in (2**21, 2**26):
        settings = Settings(alpha=5e-3, levels=2, steps=2, search=search, memory=memory)
        source = Source.of(x, settings)
        guess = source.sharp(2)[0].flip(2)
        got = coarse_to_fine([source], [guess], (28, 31), settings)[0].image
        assert expected is None or torch.equal(got, expected)
        expected = got


@pytest.mark.parametrize("alpha", [math.inf, 5e-3])
def test_samples_do_not_depend_on_their_neighbours(alpha):
    x = picture("chelsea", 30, 36).float()
    settings = Settings(alpha=alpha, levels=3, steps=4)
    source = Source.of(x, settings)
    coarse = source.sharp(3)[0]
    draw = torch.Generator().manual_seed(0)
    guesses = [coarse + torch.randn(coarse.shape, generator=draw) for _ in range(3)]
    together = coarse_to_fine([source], guesses, (30, 36), settings)
    alone = coarse_to_fine([source], guesses[2:], (30, 36), settings)[0]
    assert torch.equal(together[2].image, alone.image)
    assert torch.equal(together[2].places, alone.places)


@pytest.mark.parametrize("keys", ["switch", "both"])
@pytest.mark.parametrize("alpha", [math.inf, 5e-3])
def test_without_noise_sharp_keys_return_the_source(keys, alpha):
    x = picture("astronaut", 40, 40).float()
    settings = Settings(alpha=alpha, keys=keys, levels=3)
    source = Source.of(x, settings)
    image = coarse_to_fine([source], [source.sharp(3)[0]], (40, 40), settings)[0].image
    if keys == "switch":
        assert torch.equal(image, x)
    else:
        assert float((image - x).square().mean()) < 1e-3


def test_blurred_keys_do_not_return_the_source():
    x = picture("brick", 40, 40).float()
    settings = Settings(levels=3)
    source = Source.of(x, settings)
    image = coarse_to_fine([source], [source.sharp(3)[0]], (40, 40), settings)[0].image
    assert float((image - x).abs().max()) > 0.01


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_number_of_channels(channels):
    x = torch.cat([picture("coffee", 24, 26), picture("brick", 24, 26)])[:channels]
    source = Source.of(x, SMALL)
    out = coarse_to_fine([source], [source.sharp(2)[0]], (24, 26), SMALL)[0]
    assert out.image.shape == x.shape


# ---- places, key sets, masks


def test_places_and_indices_are_inverse_and_name_the_copied_pixels():
    a, b = picture("coffee", 20, 22), picture("brick", 15, 30)
    sources = [Source.of(x, Settings(levels=1)) for x in (a, b)]
    keys = key_set(sources, 0, "both")
    field = torch.arange(keys.keys.shape[1] - 6)[:, None] * (keys.keys.shape[2] - 6) + torch.arange(24)
    inside = keys.mask.unfold(0, 7, 1).unfold(1, 7, 1).all(-1).all(-1)
    places = keys.places(field, 7)
    for i, j in inside[:, :24].nonzero()[::37].tolist():
        source, row, column = places[i, j].tolist()
        x = (a, b)[source]
        assert torch.equal(keys.values[:, i : i + 7, j : j + 7], x[:, row : row + 7, column : column + 7])
    first = keys.indices(places[: 20 - 6], 7)
    assert torch.equal(first[:, : 22 - 6], field[: 20 - 6, : 22 - 6])


def test_no_patch_crosses_from_one_image_to_another():
    sources = [Source.of(torch.rand(1, 12, 14).double(), Settings(levels=1)) for _ in range(3)]
    keys = key_set(sources, 0, "sharp")
    whole = keys.mask.unfold(0, 7, 1).unfold(1, 7, 1).all(-1).all(-1)
    assert int(whole.sum()) == 3 * 6 * 8


def test_masked_pixels_never_leak():
    """Poison under the mask changes nothing, at any level, for any kind of keys."""
    x = picture("grass", 40, 44)
    mask = torch.ones(40, 44, dtype=torch.bool)
    mask[12:20, 15:24] = False
    for keys in ("blurred", "switch", "both"):
        settings = Settings(levels=3, steps=3, keys=keys, patch=5, alpha=1e-3)
        guess = pyramid(x, 3, 0.75)[-1]
        outputs = []
        for poison in (0.0, 1e3, math.nan):
            source = Source.of(torch.where(mask, x, poison), settings, mask)
            outputs.append(coarse_to_fine([source], [guess], (40, 44), settings)[0].image)
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])


def test_mask_of_ones_changes_nothing():
    x = picture("coffee", 30, 30)
    settings = Settings(levels=2, steps=2)
    guess = pyramid(x, 2, 0.75)[-1]
    plain = coarse_to_fine([Source.of(x, settings)], [guess], (30, 30), settings)[0].image
    masked = Source.of(x, settings, torch.ones(30, 30, dtype=torch.bool))
    torch.testing.assert_close(coarse_to_fine([masked], [guess], (30, 30), settings)[0].image, plain)


def test_a_hole_that_leaves_no_patch_is_refused():
    mask = torch.zeros(30, 30, dtype=torch.bool)
    mask[:6] = True
    settings = Settings(levels=1)
    source = Source.of(picture("coffee", 30, 30), settings, mask)
    with pytest.raises(UserError, match="outside the mask"):
        coarse_to_fine([source], [torch.zeros(3, 23, 23).double()], (30, 30), settings)


# ---- sizes and depth


def test_level_sizes_and_depth():
    assert [level_size((180, 250), 0.75, n) for n in (0, 1, 9)] == [(180, 250), (135, 188), (14, 19)]
    assert depth((180, 250), 0.75, 14) == 9
    assert depth((93, 124), 0.75, 14) == 6
    assert level_size((125, 125), 0.8, 3) == (64, 64)  # exactly; floats would give 65
    assert depth((10, 10), 0.75, 14) == 0


def test_levels_step_by_the_ratio_and_not_by_the_rounded_sizes():
    """A straight line keeps its slope and its centre through the pyramid (away from the borders)."""
    ramp = torch.arange(50.0, dtype=torch.float64).expand(1, 30, 50) * 0.01
    fine = up(pyramid(ramp, 1, 0.75)[1], (30, 50), 0.75)
    torch.testing.assert_close(fine[:, :, 8:42], ramp[:, :, 8:42], rtol=0, atol=5e-4)  # 1/20 pixel


def test_facts_of_every_level():
    x = picture("coffee", 24, 30)
    source, seen = Source.of(x, SMALL), []
    coarse_to_fine([source], [source.sharp(2)[0]] * 2, (24, 30), SMALL, seen.append)
    assert [fact.level for fact in seen] == [2, 1, 0]
    assert all(isinstance(fact, LevelFacts) and fact.seconds > 0 for fact in seen)
    assert seen[-1].size == (24, 30)
    assert seen[-1].queries == 18 * 24


def test_too_many_levels_are_refused():
    x = picture("coffee", 24, 30)
    settings = Settings(levels=6)
    source = Source.of(x, settings)
    with pytest.raises(UserError, match="smaller than a 7x7 patch"):
        coarse_to_fine([source], [source.sharp(6)[0]], (24, 30), settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"alpha": math.nan},
        {"ratio": 1.0},
        {"ratio": 0.0},
        {"levels": -1},
        {"steps": 0},
        {"patch": 0},
    ],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(UserError):
        Settings(**wrong)


# ---- search


def test_movement_is_each_patch_s_distance_from_what_it_was():
    x = picture("coffee", 12, 12)
    y = x.clone()
    y[1, 6, 7] += 1e-9
    y[2, 0, 0] += 0.25
    pairs = list(zip(all_patches(x, 5), all_patches(y, 5), strict=True))
    expected = torch.stack([(a.double() - b.double()).square().mean() for a, b in pairs])
    found = movement(y, x, 5)
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)
    assert torch.equal(found == 0, torch.tensor([torch.equal(a, b) for a, b in pairs]))


def test_rows_are_numbered_as_patches():
    x = picture("coffee", 9, 11)
    expected = torch.stack([patch.flatten() for patch in all_patches(x, 4)])
    assert torch.equal(rows(x, torch.arange(len(expected)), 4), expected)


@pytest.mark.parametrize("alpha", [math.inf, 5e-3])
def test_patchmatch_is_near_and_says_how_near(alpha):
    from gpnn.search import excess
    from paperkit.nearest import Patches

    keys, y = picture("coffee", 40, 50).float(), picture("coffee", 40, 50).float().flip(2)
    among = matcher(Frame(keys), 7, "patchmatch", 2**26)
    for _ in range(3):
        found = among.search(y, alpha, None)
    far = excess(Patches(keys, 7), y, found, alpha, 200)
    assert far["median"] < 1.05
    assert far["p99"] < 3
    exact = matcher(Frame(keys), 7, "exact", 2**26).search(y, alpha, None)
    none = excess(Patches(keys, 7), y, exact, alpha, 200)
    assert none["missed"] == 0
    assert none["p99"] == pytest.approx(1)


def test_patchmatch_respects_the_mask():
    keys = picture("coffee", 30, 30).float()
    mask = torch.ones(30, 30, dtype=torch.bool)
    mask[10:20, 10:20] = False
    found = matcher(Frame(keys, mask), 7, "patchmatch", 2**26).search(keys, math.inf, None)
    valid = mask.unfold(0, 7, 1).unfold(1, 7, 1).all(-1).all(-1).flatten()
    assert bool(valid[found.index].all())


@pytest.mark.parametrize("alpha", [math.inf, 5e-3, 1e-4])
def test_faiss_gives_the_exact_indices(alpha):
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    keys, y = picture("brick", 40, 44).float(), picture("brick", 40, 44).float().flip(2)
    mask = torch.ones(40, 44, dtype=torch.bool)
    mask[3:6, 20:30] = False
    found = matcher(Frame(keys, mask), 7, "faiss", 2**26).search(y, alpha, None)
    exact = matcher(Frame(keys, mask), 7, "exact", 2**26).search(y, alpha, None)
    assert float((found.index == exact.index).double().mean()) > 0.999
    same = found.index == exact.index
    torch.testing.assert_close(found.distance[same], exact.distance[same])


def test_key_set_of_one_image_has_no_frame():
    source = Source.of(picture("coffee", 20, 20), SMALL)
    keys = key_set([source], 0, "sharp")
    assert isinstance(keys, KeySet)
    assert keys.mask is None
    assert keys.parts == ((0, 20, 20, 0),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("patch", [1, 3, 7])
def test_compiled_fold_is_the_plain_one_bit_for_bit(dtype, patch):
    draw = torch.Generator().manual_seed(patch)
    values = torch.rand(3, 20, 17, generator=draw, dtype=dtype)
    field = torch.randint((20 - patch + 1) * (17 - patch + 1), (9, 14), generator=draw)
    weights = fold_weights(patch)
    assert torch.equal(fold_compiled(values, field, weights), fold_torch(values, field, weights))
    turned = values.transpose(1, 2).contiguous().transpose(1, 2)  # not contiguous, the same numbers
    assert torch.equal(fold_compiled(turned, field, weights), fold_compiled(values, field, weights))
