"""Tasks, guides, figures, provenance: closed forms, invariances, and what is refused."""

import math

import pytest
import torch
from paperkit import UserError
from paperkit.resize import resize
from vgpnn import clips, guidance, metrics, provenance, synthetic, tasks
from vgpnn.holes import realism_in
from vgpnn.method import Output, grid_of, outputs, passes, places_of
from vgpnn.pyramid import Settings, shape_of
from vgpnn.quality import compared, ratios
from vgpnn.reproduce import psnr
from vgpnn.sizes import period
from vgpnn.video import to_frames, to_unit

TINY = Settings(
    ratio_time=0.7, ratio_space=0.7, least_frames=3, least_side=9, patch=(3, 5, 5), steps=1, search="exact"
)


def clip(frames: int = 5, height: int = 12, width: int = 16) -> torch.Tensor:
    return resize(to_unit(clips.stand_in())[:, :frames], size=(height, width)).clamp(-1, 1)


# ---- tasks


def test_frames_and_videos_are_taken_alike():
    x = to_frames(clip())
    one = tasks.generate(x, 1, 3, settings=TINY)[0].video
    assert torch.equal(one, tasks.generate(to_unit(x), 1, 3, settings=TINY)[0].video)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(3, 4, 5), torch.zeros(2, 4, 12, 12), torch.full((3, 4, 12, 12), 2.0),
        torch.zeros(3, 4, 12, 12, dtype=torch.int64),
    ],
)  # fmt: skip
def test_what_is_no_video_is_refused(wrong):
    with pytest.raises((UserError, Exception), match=r"video|values|Type-check"):
        tasks.generate(wrong)


def test_a_sample_is_the_same_in_any_company():
    x = clip()
    three = tasks.generate(x, 3, 7, settings=TINY)
    assert torch.equal(three[2].video, tasks.generate(x, [2], 7, settings=TINY)[0].video)
    assert not torch.equal(three[0].video, three[1].video)
    assert not torch.equal(three[0].video, tasks.generate(x, 1, 8, settings=TINY)[0].video)
    for numbers in (0, [], [-1]):
        with pytest.raises(UserError, match="at least one sample"):
            tasks.generate(x, numbers, settings=TINY)


def test_every_voxel_of_a_median_is_one_of_the_source():
    x = to_unit(to_frames(clip()))
    y = tasks.generate(x, 1, 0, settings=TINY)[0].video
    for channel in range(3):
        assert set(y[channel].flatten().tolist()) <= set(x[channel].flatten().tolist())


def test_retargeting_gives_the_shape_and_knows_the_layout():
    x = clip(5, 12, 20)
    y = tasks.retarget(x, (5, 12, 27), settings=TINY)
    assert shape_of(y.video) == (5, 12, 27)
    assert tasks.scaled_shape((13, 72, 128), (0.5, 1.0, 0.6)) == (6, 72, 77)
    assert tasks.settings_for("retarget", (13, 72, 128)).least_side == 15
    assert tasks.settings_for("retarget", (13, 360, 640)).least_side == 40
    assert tasks.settings_for("retarget", (13, 20, 30), (13, 20, 12)).least_side == 12
    assert tasks.settings_for("generate", (13, 72, 128)).least_frames == 3
    for ratio in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="positive"):
            tasks.scaled_shape((13, 72, 128), (1.0, 1.0, ratio))


def test_inpainting_leaves_the_outside_and_copies_nothing_of_the_hole():
    x = clip(5, 14, 32)
    hole = torch.zeros(5, 14, 32, dtype=torch.bool)
    hole[1:4, 5:8, 24:27] = True
    painted = torch.where(hole, torch.tensor([1.0, -1.0, 1.0])[:, None, None, None], x)  # not in the clip
    output = tasks.inpaint(painted, hole, settings=TINY)
    assert torch.equal(output.video[:, ~hole], x[:, ~hole])
    assert not bool(((output.video - painted).abs().amax(0) < 1e-3)[hole].any())
    places = provenance.voxel_places(output)
    assert not bool(hole[places[..., 0], places[..., 1], places[..., 2]].any())
    avoid = torch.zeros_like(hole)
    avoid[:, :, 18:] = True
    kept_out = provenance.voxel_places(tasks.inpaint(painted, hole, avoid=avoid, settings=TINY))
    assert int(kept_out[..., 2].max()) < 18
    for wrong in (torch.zeros_like(hole), torch.ones_like(hole), hole[:4]):
        with pytest.raises(UserError):
            tasks.inpaint(painted, wrong, settings=TINY)


def test_painting_without_a_cue_spreads_what_is_around():
    x = torch.full((3, 4, 9, 9), 0.25)
    hole = torch.zeros(4, 9, 9, dtype=torch.bool)
    hole[:, 2:7, 2:7] = True
    y = tasks.without_cue(torch.where(hole, -1.0, x), hole)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-6)


def test_a_hole_is_a_few_patches_at_the_coarsest_level():
    hole = torch.zeros(13, 144, 256, dtype=torch.bool)
    hole[:, 40:80, 100:150] = True
    assert tasks.settings_for_hole((13, 144, 256), hole).least_side == round(144 * 1.5 * 7 / 40)


def test_analogies_are_led_by_their_guide():
    """Content and style are one clip whose halves differ; a guide that swaps the halves swaps the output."""
    x, fast = synthetic.two_speeds("grass", "brick", 4, 12, 24, True)
    guide = fast.float()[None]
    settings = TINY.__class__(**{**vars(TINY), "alpha": 0.0044})
    for given, expected in ((guide, fast), (1 - guide, ~fast)):
        y = tasks.analogy(x, x, given, guide, settings=settings).video
        assert float(((y[0] > y[2]) == expected).double().mean()) > 0.85


def test_guides_that_do_not_fit_are_refused():
    x = clip()
    guide = torch.zeros(1, *shape_of(x))
    with pytest.raises(UserError, match="content's guide"):
        tasks.analogy(x, x, guide[:, :3], guide, settings=TINY)
    with pytest.raises(UserError, match="channels"):
        tasks.analogy(x, x, guide.expand(2, -1, -1, -1), guide, settings=TINY)
    with pytest.raises(UserError, match="longer or larger style"):
        tasks.sketch(clip(6, 20, 24), clip(3, 6, 7), settings=TINY)


# ---- guidance


def test_bins_are_clusters_in_ascending_order():
    values = torch.tensor([0.0, 0.1, 5.0, 5.1, 9.0, 9.1]).view(1, 2, 3)
    assert guidance.quantise(values, 3).flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert guidance.quantise(values, 1).flatten().tolist() == [0] * 6
    assert guidance.quantise(torch.zeros(1, 2, 2), 4).flatten().tolist() == [0] * 4


def test_motion_tells_fast_from_slow():
    x, fast = synthetic.two_speeds("gravel", "gravel", 4, 32, 64, False)
    guide = guidance.motion(x, 2, guidance.classical("tvl1"))
    assert guide.shape == (1, 4, 32, 64)
    assert float(((guide[0] > 0.5) == fast).double().mean()) > 0.8
    with pytest.raises(UserError, match="two frames"):
        guidance.motion(x[:, :1], 2, guidance.classical("ilk"))


@pytest.mark.slow
def test_raft_reads_a_file_of_weights(tmp_path):
    from torchvision.models.optical_flow import raft_large

    torch.manual_seed(0)
    torch.save(raft_large(weights=None).state_dict(), tmp_path / "raft.pth")
    flow = guidance.estimator("raft", str(tmp_path / "raft.pth"))
    x = clip(2, 12, 16)
    assert flow(x[:, 0], x[:, 1]).shape == (2, 12, 16)


def test_raft_refuses_weights_of_another_network_and_anything_but_data(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save(print, tmp_path / "code.pth")  # a function by name: more than data
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04")
    for name, words in (("other", "of another network"), ("code", "not opened"), ("torn", "damaged")):
        with pytest.raises(UserError, match=words):
            guidance.estimator("raft", str(tmp_path / f"{name}.pth"))


# ---- figures


def brute(a, b, p):
    def every(v):
        return metrics.rows(v, torch.arange(math.prod(grid_of(shape_of(v), p))), p).double()

    return torch.cdist(every(a), every(b)).square() / (len(a) * math.prod(p))


def test_figures_equal_brute_force():
    x, y = clip(5, 9, 11), clip(5, 9, 11).flip(3)
    d = brute(y, x, metrics.PATCH)
    against = metrics.Against(x)
    found = against.figures(y)
    assert found["realism"] == pytest.approx(float(d.amin(1).mean()), rel=1e-6)
    assert found["completeness"] == pytest.approx(float(d.amin(0).mean()), rel=1e-6)
    places = places_of(d.argmin(1), grid_of((5, 9, 11), metrics.PATCH))
    own = places_of(torch.arange(len(d)), grid_of((5, 9, 11), metrics.PATCH))
    assert found["same_place"] == pytest.approx(float(((places - own).abs().amax(1) <= 1).double().mean()))
    itself = against.figures(x)
    assert itself["realism"] == itself["completeness"] == 0
    assert itself["same_place"] == itself["motion"] == 1


def test_natural_distance_leaves_the_neighbourhood_out():
    x = clip(5, 9, 16)
    d = brute(x, x, metrics.PATCH)
    grid = grid_of((5, 9, 16), metrics.PATCH)
    own = places_of(torch.arange(len(d)), grid)
    near = ((own[:, None] - own[None]).abs() <= torch.tensor(metrics.APART)).all(2)
    least = d.masked_fill(near, math.inf).amin(1)
    expected = torch.where(least.isinf(), 0.0, least).mean()
    assert metrics.Against(x).natural() == pytest.approx(float(expected), rel=1e-5)


def test_diversity_by_hand():
    x = torch.zeros(3, 2, 2, 2)
    x[:, 0] = 1.0  # half ones: standard deviation 1/2
    low, high = torch.zeros_like(x), torch.full_like(x, 0.5)
    assert metrics.diversity([low, high], x) == pytest.approx(0.25 / 0.5)
    assert metrics.diversity([low, low], x) == 0
    with pytest.raises(UserError, match="two samples"):
        metrics.diversity([low], x)


def test_the_field_of_a_copy_is_simple():
    x = clip(4, 10, 12)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    copy_, mixed = metrics.field_complexity(x, x), metrics.field_complexity(noise, x)
    assert copy_ < 0.05 < 0.2 < mixed  # a dozen bytes of 480 are the format
    assert metrics.field_complexity(x, x) == copy_


def test_realism_in_a_hole_and_psnr():
    x = clip(5, 14, 18)
    hole = torch.zeros(5, 14, 18, dtype=torch.bool)
    hole[:, 5:8, 7:10] = True
    inside, outside = realism_in(x, x, hole)
    noisy, _ = realism_in(torch.where(hole, torch.rand_like(x) * 2 - 1, x), x, hole)
    assert noisy > inside > 0
    assert outside > 0
    assert psnr(x, x) == 200
    assert psnr(torch.zeros(1), torch.full((1,), 0.02)) == pytest.approx(40)


def test_period_of_stripes():
    for seed in (0, 1):
        x, piece = synthetic.striped(seed)
        assert period(x) == piece
        assert float((x[:, 1, :, :-1] - x[:, 0, :, 1:]).abs().max()) == 0


def test_what_shrinks_is_resized_at_once_and_what_grows_is_made_of_patches():
    x = clip(3, 9, 32)
    narrow = tasks.retargeting(x, (3, 9, 24), settings=TINY).guesses[0]
    assert torch.equal(narrow, resize(x, size=(3, 9, 24), axes=(1, 2, 3)))
    grown = tasks.retargeting(x, (3, 9, 48), settings=TINY).guesses[0]
    plain = resize(x, size=(3, 9, 48), axes=(1, 2, 3))
    assert shape_of(grown) == (3, 9, 48)
    against = metrics.Against(x)
    assert against.realism(grown) < against.realism(plain)


# ---- provenance


def test_places_of_voxels_of_a_copy_are_their_own():
    x = clip(4, 9, 11)
    grid = grid_of((4, 9, 11), (3, 5, 5))
    own = places_of(torch.arange(math.prod(grid)).view(grid), grid)
    output = Output(x, own, torch.zeros(grid))
    t, h, w = torch.meshgrid(torch.arange(4), torch.arange(9), torch.arange(11), indexing="ij")
    assert torch.equal(provenance.voxel_places(output), torch.stack([t, h, w], -1))
    assert provenance.same_place(output) == 1
    picture = provenance.colours(provenance.voxel_places(output), (4, 9, 11))
    assert picture[:, 0, 0, 0].tolist() == [-1, -1, -1]
    assert picture[:, -1, -1, -1].tolist() == [1, 1, 1]


def test_a_loop_keeps_its_motion_and_has_no_seam():
    draw = torch.Generator().manual_seed(0)
    a, b = 0.8 * (torch.rand(2, 3, 1, 18, 20, generator=draw) - 0.5)
    turn = torch.arange(13)[:, None, None] * (2 * math.pi / 5)  # 2.6 turns: the last frame is not the first's
    x = a * turn.cos() + b * turn.sin()
    y = tasks.loop(x)[0].video
    step = x.diff(dim=1).abs().mean()
    assert float(y.diff(dim=1).abs().mean()) > 0.7 * float(step)
    assert float((y[:, 0] - y[:, -1]).abs().mean()) < 1.25 * float(step)
    assert float((x[:, 0] - x[:, -1]).abs().mean()) > 1.4 * float(step)


def test_a_loop_has_a_place_for_every_voxel():
    x = clip(4, 10, 12)
    problem = tasks.looping(x, settings=TINY)
    *_, state = passes(problem)
    output = outputs(problem, state)[0]
    assert output.places.shape[0] == 4
    assert provenance.voxel_places(output, loop=True).shape == (4, 10, 12, 3)


# ---- quality


def test_ratios_are_those_of_every_level_and_step():
    table = ratios(clip(4, 17, 18), 0.0044, 0)
    assert [len(row) for row in table] == [1] + [5] * (len(table) - 1)
    assert min(cell.ratio for row in table for cell in row) >= 1 - 1e-4
    assert max(row[-1].ratio for row in table[1:]) < 1.2


def test_scores_beside_the_best():
    best = torch.tensor([1.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    cell = compared(best + torch.tensor([0.0, 0.5, 1.5, 0.0]), best)
    assert cell == (pytest.approx(1.25), 4, 2, pytest.approx(0.75))
