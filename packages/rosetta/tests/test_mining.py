"""Mining of planted units: significance, chains, stored tables; residuals; clusters."""

from dataclasses import replace

import pytest
import torch
from paperkit import UserError
from rosetta import cluster, mining, nulls, planted
from rosetta.config import MatchConfig
from rosetta.maps import Maps
from rosetta.mining import Tables, mine
from rosetta.residual import SCALES, design, explained, pixel_residual, regressed, template_free
from rosetta.similarity import Options, table

MATCH = MatchConfig(draws=4, others=1)


def zoo(seed: int = 0, images: int = 40) -> tuple[list[Maps], list[dict[int, int]]]:
    """Three planted models with few images."""
    found = planted.plant(seed, 0.3)
    return [maps.part(slice(0, images)) for maps in found.maps], list(found.truth)


@pytest.fixture(scope="module")
def mined() -> mining.Mined:
    return mine(Tables(zoo()[0], MATCH))


def test_planted_units_are_found_and_significant(mined):
    truth = zoo()[1]
    for (i, j), pair in mined.pairs.items():
        right = [truth[i].get(u) == truth[j].get(v, -1) for u, v in pair.significant.pairs]
        assert len(right) >= 20
        assert sum(right) >= 0.9 * len(right)
        assert len(pair.matches) > len(pair.significant)  # noise has best buddies too
        assert pair.null_counts["images"]
        assert max(pair.p[pair.matches.scores > pair.threshold]) == pytest.approx(1 / 5)
        assert float(pair.q.min()) < 0.1 < float(pair.q.max())


def test_chains_hold_one_latent_and_stars_contain_cliques(mined):
    truth = zoo()[1]
    stars, cliques, cycles = (mined.chains[rule] for rule in ("star", "clique", "cycle"))
    latents = [
        {t.get(u) for t, u in zip(truth, c.units, strict=True)}
        for c, kept in zip(stars.found, stars.significant, strict=True)
        if kept
    ]
    assert len(latents) >= 18
    assert sum(len(x) == 1 and None not in x for x in latents) >= 0.9 * len(latents)
    assert {c.units for c in cliques.found} <= {c.units for c in stars.found}
    assert {c.units for c in cliques.found} == {c.units for c in cycles.found}  # three models: the same pairs
    assert stars.count > max(stars.null_counts) or stars.count >= 18


def test_counts_name_every_null(mined):
    rows = mining.counts(mined, mined)
    text = mining.as_text(rows)
    first, *rest = text.splitlines()
    for head in (
        "found>t*",
        "untrained>t*",
        "rotated>t*",
        "shifted>t*",
        "i.i.d.",
        "permuted",
        "scattered",
        "t*",
    ):
        assert head in first
    assert [line.split("  ")[0] for line in rest] == [row["what"] for row in rows]
    assert [row["what"] for row in rows[3:]] == ["star of 3", "clique of 3", "cycle of 3"]


def test_stored_tables_are_taken_and_a_stopped_run_goes_on(tmp_path, monkeypatch, mined):
    maps = zoo()[0]
    summarise, made = mining.summarise, []

    def dying(*words):
        made.append(1)
        if len(made) == 9:
            raise KeyboardInterrupt
        return summarise(*words)

    monkeypatch.setattr(mining, "summarise", dying)
    with pytest.raises(KeyboardInterrupt):
        mine(Tables(maps, MATCH, tmp_path))
    assert len(list(tmp_path.iterdir())) == 8
    again = mine(Tables(maps, MATCH, tmp_path))
    assert len(made) == 9 + 3 * 8 - 8
    for pair, found in mined.pairs.items():
        assert torch.equal(again.pairs[pair].matches.scores, found.matches.scores)
        assert again.pairs[pair].threshold == found.threshold


def test_another_rule_needs_no_table_and_another_metric_is_refused(mined, monkeypatch):
    monkeypatch.setattr(mining, "summarise", None)
    wider = mine(mining.with_rule(mined.tables, replace(MATCH, k=3)))
    assert len(wider.pairs[0, 1].matches) > len(mined.pairs[0, 1].matches)
    assert mined.pairs[0, 1].matches.pairs <= wider.pairs[0, 1].matches.pairs
    milder = mine(mining.with_rule(mined.tables, replace(MATCH, threshold="quantile")))
    assert milder.pairs[0, 1].threshold < mined.pairs[0, 1].threshold
    for other in (replace(MATCH, metric="spearman"), replace(MATCH, k=11)):
        with pytest.raises(UserError, match="stored tables hold the 10 best of one metric and seed"):
            mining.with_rule(mined.tables, other)


def test_bad_zoos():
    maps = zoo()[0]
    with pytest.raises(UserError, match="two models or more"):
        Tables(maps[:1], MATCH)
    with pytest.raises(UserError, match="a model is named twice"):
        Tables([maps[0], maps[0]], MATCH)
    still = Maps("still", ["l"], [torch.ones(40, 3, 7, 7)])
    with pytest.raises(UserError, match="still: every unit is constant"):
        mine(Tables([maps[0], still], MATCH))


def test_halves_agree_on_planted_units_and_not_on_permuted_ones():
    found = planted.plant(0, 0.3).maps
    for maps in found:
        maps.measure()
    index, null = mining.split_half(found[0], found[1], MATCH, 0.2, 3)
    assert index > 0.8
    assert max(null) < 0.3


# ---- residuals


def test_template_free_maps_have_no_mean_map():
    maps = zoo()[0][0]
    free = template_free(maps)
    assert float(free.data[0][:].mean(0).abs().max()) < 1e-5


def test_pixels_explain_brightness_and_edges_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(60, 1, 16, 16, generator=generator)
    by = design(pixels, (8, 8))
    assert by.shape == (60, len(SCALES) + 1, 8, 8)
    noise = torch.randn(60, 2, 8, 8, generator=generator).double()
    seen = torch.einsum("npij,pc->ncij", by, torch.randn(len(SCALES) + 1, 2, generator=generator).double())
    maps = Maps("m", ["l"], [torch.cat([seen, noise, seen + noise], 1)])
    rest = pixel_residual(maps, pixels)
    left = rest.data[0][:]
    assert float(left[:, :2].abs().max()) < 1e-4
    scores = table(Maps("x", ["l"], [left]), Maps("y", ["l"], [noise]), Options())
    assert min(float(scores[2, 0]), float(scores[3, 1]), float(scores[4, 0]), float(scores[5, 1])) > 0.98
    assert 0 < explained(maps, rest)[0] < 1
    y = regressed(noise.float(), by)
    flat = y.double().transpose(0, 1).flatten(1) @ by.transpose(0, 1).flatten(1).T
    assert float(flat.abs().max()) < 1e-3


# ---- clusters


def test_copies_fall_into_one_group():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(50, 3, 6, 6, generator=generator)
    noisy = base.repeat_interleave(2, 1) + 0.2 * torch.randn(50, 6, 6, 6, generator=generator)
    maps = Maps("m", ["a", "b"], [noisy[:, :4], noisy[:, 4:]])
    found = cluster.cluster(maps, list(range(6)))
    assert found.labels == [0, 0, 1, 1, 2, 2]
    assert len(found.tree) == 5
    assert cluster.cluster(maps, [4]).labels == [0]


def test_views_of_maps_can_be_views_again():
    maps = zoo()[0][0]
    twice = nulls.disturbed(nulls.disturbed(maps, "shift", 0), "images", 1)
    assert twice.data[0][slice(0, 3)].shape == maps.data[0][:3].shape
    assert twice.part(slice(0, 5)).images == 5
