"""The learned claims of the README: ablations, norms, noise, refinement, latent space, drift, memorisation.

Each function returns the record's fields for `ign reproduce`. Criteria and seeds stand here and were fixed
before the runs. Networks that several claims need are trained once per commit (`trained`).
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from paperkit import reproduction, results, rng
from PIL import Image, ImageDraw, ImageFont
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from ign import data
from ign.classifier import Judge, judge
from ign.config import TRAIN, TrainConfig
from ign.evaluate import CONFIDENT, geometry, idempotence, nearest_distance, quality
from ign.generate import IGN
from ign.method import Noise, distance
from ign.train import network, settle, train

SAMPLES = 1000
BRIEF = replace(TRAIN["small"][0], steps=2000, log_every=1000, sample_every=2000, save_every=2000)
"""The default recipe, a third as long: what the ablations are compared at."""
SMALL = replace(TRAIN["small"][0], log_every=1000, sample_every=6000, save_every=2000)

Figures = dict[str, float]


def MNIST(steps: int, base: str = "mnist", **changes: Any) -> TrainConfig:
    """A preset for MNIST at another length, its ramp and pictures scaled with it."""
    preset = TRAIN[base][0]
    short = {"tight_ramp": min(preset.tight_ramp, steps * 2 // 3), "sample_every": steps, "save_every": steps}
    return replace(preset, **{"steps": steps, "log_every": 500, **short, **changes})


def remember(words: str, make: Callable[[], Figures]) -> Figures:
    """Figures that were made at this commit before, or are made now and kept: a killed claim goes on."""
    return reproduction.remember("ign", words, make)


# ---- shared parts --------------------------------------------------------------------------------------


def trained(config: TrainConfig, name: str = "") -> IGN:
    """The network of a configuration, trained at this commit now or by an earlier claim."""
    return IGN.load(reproduction.trained("ign", config, train, name))


def small(seed: int) -> IGN:
    """The default recipe at a seed."""
    return trained(replace(SMALL, seed=seed), "small")


def untrained(config: TrainConfig, train_set: data.Images) -> IGN:
    """The network at step 0, its norms' statistics estimated as after training."""
    rng.seed_everything(config.seed)
    net, noise = network(config, train_set.shape), Noise(config.noise, train_set.shape)
    settle(net, noise, train_set, config.seed)
    return IGN(net, noise)


class Yardstick:
    """A data set with its judge, and the figures of a network on it."""

    def __init__(self, config: TrainConfig):
        self.train, self.test = data.load(config), data.load(config, "test")
        self.judge: Judge = judge(self.train, self.test)
        self.held_out = self.test.floats()[:SAMPLES]
        self.known = self.train.floats()[:20_000]

    def figures(self, ign: IGN, seed: int, k: int = 1) -> Figures:
        """Quality, geometry and idempotence of samples after `k` applications."""
        samples = ign.sample(SAMPLES, k, seed)
        found = quality(samples, self.held_out, self.judge) | geometry(samples, self.known, self.held_out)
        return found | idempotence(ign, 500, self.held_out, k=1, seed=seed)


def run_arms(arms: dict[str, TrainConfig], seeds: int, yard: Yardstick) -> dict[str, list[Figures]]:
    """The figures of every arm at seeds 0, 1, …; arms share seeds, data order and noise."""
    found: dict[str, list[Figures]] = {name: [] for name in arms}
    for seed in tqdm(range(seeds), desc="seeds"):
        for name, config in arms.items():
            found[name].append(yard.figures(trained(replace(config, seed=seed), name), seed))
    return found


def column(rows: Iterable[Figures], key: str) -> list[float]:
    """One figure over the seeds."""
    return [row[key] for row in rows]


def table(found: dict[str, list[Figures]], keys: Iterable[str]) -> dict[str, list[float]]:
    """The chosen figures of every arm, named figure_arm."""
    return {f"{key}_{name}": column(rows, key) for name, rows in found.items() for key in keys}


KEYS = ("kid", "balanced", "classes", "recall", "e2", "diversity", "memorisation")


# ---- E2: which loss does what --------------------------------------------------------------------------


def ablation_losses(seeds: int) -> dict[str, Any]:
    """Each loss left out, each gradient sent the wrong way, and the width of the code."""
    arms = {
        "full": BRIEF,
        "no_rec": replace(BRIEF, rec=0.0),
        "no_idem": replace(BRIEF, idem=0.0),
        "no_tight": replace(BRIEF, tight=0.0),
        "idem_to_outer": replace(BRIEF, engine="naive", routing="idem_to_outer"),
        "tight_to_inner": replace(BRIEF, engine="naive", routing="tight_to_inner"),
        "idem_ramp": replace(BRIEF, idem_ramp=500),
        "code_8": replace(BRIEF, code=8),
        "code_32": replace(BRIEF, code=32),
        "code_64": replace(BRIEF, code=64),
    }
    found = run_arms(arms, seeds, Yardstick(BRIEF))
    full = column(found["full"], "kid")
    wins = {name: sum(a < b for a, b in zip(full, column(found[name], "kid"), strict=True)) for name in arms}
    return {
        "claim": "Reconstruction and idempotence losses are both needed: without either, samples are worse",
        "source": "section 2 (the role of each loss); no ablation is published",
        "preset": "small, 2,000 steps",
        "data": "digits, 1,297", "metric": "kid_k1", "unit": "1", "better": "lower", "ours": full,
        "against": ("without the idempotence loss", column(found["no_idem"], "kid")),
        "arms": table(found, KEYS),
        "criterion": "KID below that of no_rec and of no_idem in at least 4 of 5 seeds each",
        "statistic": min(wins["no_rec"], wins["no_idem"]) / seeds, "threshold": 0.8,
        "details": {
            "seeds_won_by_full": wins,
            "predicted_symptoms": {
                "no_rec: recall below full": _below(found["no_rec"], found["full"], "recall"),
                "no_idem: e2 above full": _below(found["full"], found["no_idem"], "e2"),
                "no_tight: balanced readable share below full":
                    _below(found["no_tight"], found["full"], "balanced"),
                "routing errors: KID above full":
                    {name: wins[name] for name in ("idem_to_outer", "tight_to_inner")},
            },
        },
    }  # fmt: skip


def _below(low: list[Figures], high: list[Figures], key: str) -> int:
    """In how many seeds a figure of one arm is below that of another."""
    return sum(a < b for a, b in zip(column(low, key), column(high, key), strict=True))


# ---- E3: norm, clamp and the statistics of batch norm --------------------------------------------------


def norm_clamp(seeds: int) -> dict[str, Any]:
    """Collapse by norm and clamp; and the gap between evaluation and training mode of batch norm."""
    clamps = {
        "off": {}, "1.5_x": {"clamp": 1.5}, "1.5_z": {"clamp": 1.5, "reference": "z"},
        "0.5_x": {"clamp": 0.5},
    }  # fmt: skip
    arms = {
        f"{norm}_{clamp}": replace(BRIEF, norm=norm, **words)
        for norm in ("batch", "group", "none")
        for clamp, words in clamps.items()
    }
    yard = Yardstick(BRIEF)
    found = run_arms(arms, seeds, yard)
    gaps = [_gaps(replace(BRIEF, statistics="common", seed=seed), yard) for seed in range(seeds)]
    passed = [gap["common"] > 0 and abs(gap["split"]) <= gap["common"] / 2 for gap in gaps]
    collapsed = {
        name: [float(row["classes"] <= 2 or row["diversity"] < 0.3) for row in rows]
        for name, rows in found.items()
    }
    return {
        "claim": "Own statistics for x, z and f(z) close the gap between evaluation and training mode",
        "source": "not in the paper; every public code samples in training mode or suffers",
        "data": "digits, 1,297",
        "preset": "small, 2,000 steps", "metric": "kid_gap_to_batch_statistics",
        "unit": "1", "better": "lower",
        "ours": column(gaps, "split"),
        "against": ("one common set of running statistics", column(gaps, "common")),
        "arms": {
            **table(found, ("kid", "classes", "diversity", "e2")),
            **{f"collapsed_{name}": rows for name, rows in collapsed.items()},
        },
        "criterion": "common statistics worse than batch statistics, and the gap halves, in 4 of 5 seeds",
        "statistic": sum(passed) / seeds, "threshold": 0.8,
        "details": {
            "collapsed": "two classes or fewer above 1 %, or diversity below 0.3 (fixed in advance)",
            "fisher_p_group_collapses_more_than_batch": _fisher(collapsed, "group", "batch"),
            "fisher_p_none_collapses_more_than_batch": _fisher(collapsed, "none", "batch"),
        },
    }  # fmt: skip


def _fisher(collapsed: dict[str, list[float]], more: str, less: str) -> float:
    """One-sided exact p that runs with one norm collapse more often than runs with the other."""
    runs = [
        [flag for name, flags in collapsed.items() if name.startswith(norm) for flag in flags]
        for norm in (more, less)
    ]
    table = [[sum(flags), len(flags) - sum(flags)] for flags in runs]
    tested: Any = stats.fisher_exact(table, alternative="greater")
    return float(tested.pvalue)


def _gaps(config: TrainConfig, yard: Yardstick) -> Figures:
    """KID in evaluation mode minus KID with batch statistics, before and after the statistics are split."""
    ign = trained(config, "common")
    net, noise = ign.net, ign.noise

    def kid(evaluated: IGN) -> float:
        return quality(evaluated.sample(SAMPLES, 1, config.seed), yard.held_out, yard.judge)["kid"]

    by_batch = copy.deepcopy(net).train()
    z = ign.source(SAMPLES, config.seed)
    with torch.no_grad():
        samples = torch.cat([by_batch(part, ("z",)) for part in z.split(250)])
    batch = quality(samples, yard.held_out, yard.judge)["kid"]
    fresh = network(replace(config, statistics="split"), net.shape)
    fresh.load_state_dict(net.state_dict())
    settle(fresh, noise, yard.train, config.seed)
    return {"common": kid(ign) - batch, "split": kid(IGN(fresh, noise)) - batch}


# ---- E4: source noise ----------------------------------------------------------------------------------


def noise_fourier(seeds: int) -> dict[str, Any]:
    """White noise against noise with the data's spectrum, on digits and on MNIST."""
    mnist = MNIST(1000)
    kinds = ("gaussian", "fft", "fft_hermitian")
    found: dict[str, list[Figures]] = {}
    for name, config in {"digits": BRIEF, "mnist": mnist}.items():
        arms = {f"{name}_{kind}": replace(config, noise=kind) for kind in kinds}
        found |= run_arms(arms, seeds, Yardstick(config))
    pairs = {
        f"{name}_{kind}": results.paired(
            column(found[f"{name}_{kind}"], "kid"), column(found[f"{name}_gaussian"], "kid"), "lower"
        )
        for name in ("digits", "mnist")
        for kind in kinds[1:]
    }
    return {
        "claim": "Noise with the data's Fourier moments is no worse a source than white noise",
        "source": "section 2 (end): Fourier noise is used for CelebA", "preset": "small and mnist, shortened",
        "data": "digits, 1,297; MNIST, 60,000", "metric": "kid_k1_mnist", "unit": "1", "better": "lower",
        "ours": column(found["mnist_fft"], "kid"),
        "against": ("white noise", column(found["mnist_gaussian"], "kid")),
        "arms": table(found, ("kid", "balanced", "classes", "e2")),
        "criterion": "upper end of the paired 95 % interval of the gain is not below 0, on both data sets",
        "statistic": min(pairs[f"{name}_fft"].high for name in ("digits", "mnist")), "threshold": 0.0,
        "details": {
            name: {"gain": pair.mean, "low": pair.low, "high": pair.high} for name, pair in pairs.items()
        },
    }  # fmt: skip


# ---- E7, E8, E9 and the drift: what a trained network does ---------------------------------------------


def refinement(seeds: int) -> dict[str, Any]:
    """KID after 1, 2, 3 applications, and how far application k still moves, up to k = 100."""
    yard = Yardstick(SMALL)
    found: dict[str, list[Figures]] = {f"k{k}": [] for k in (1, 2, 3, 5, 10, 100)}
    curve: list[Figures] = []
    for seed in range(seeds):
        ign = small(seed)
        for name, rows in found.items():
            rows.append(quality(ign.sample(SAMPLES, int(name[1:]), seed), yard.held_out, yard.judge))
        curve.append(idempotence(ign, 500, yard.held_out, k=100, seed=seed))
    gain = results.paired(column(found["k2"], "kid"), column(found["k1"], "kid"), "lower")
    steps = (2, 3, 4, 5, 6, 8, 11, 21, 51, 101)
    return {
        "claim": "A second application of f does not worsen the samples",
        "source": "section 4 (second application removes artefacts); long iteration in the appendix",
        "preset": "small", "data": yard.train.name, "metric": "kid_k2", "unit": "1", "better": "lower",
        "ours": column(found["k2"], "kid"), "against": ("one application", column(found["k1"], "kid")),
        "arms": {
            **table(found, ("kid", "balanced", "classes")),
            **{f"moved_at_k{step - 1}": column(curve, f"e{step}") for step in steps},
        },
        "criterion": "upper end of the paired 95 % interval of the gain in KID is not below 0",
        "statistic": gain.high, "threshold": 0.0,
        "details": {"gain": gain.mean, "low": gain.low, "high": gain.high,
                    "moved": "|f^(k+1)(z) - f^k(z)| over the mean distance of two held-out images"},
    }  # fmt: skip


def latent(seeds: int) -> dict[str, Any]:
    """Paths between noises: their length in image space, and whether their images stay readable."""
    yard = Yardstick(SMALL)
    rows: list[Figures] = []
    for seed in range(seeds):
        blank = untrained(replace(SMALL, seed=seed), yard.train)
        before = {f"untrained_{key}": value for key, value in _paths(blank, yard, seed).items()}
        rows.append(_paths(small(seed), yard, seed) | before)
    return {
        "claim": "Noise space is consistent: images change gradually along a path and stay readable",
        "source": "section 4 (interpolation and arithmetic of noises)", "preset": "small",
        "data": yard.train.name, "metric": "path_over_shuffled_path_spherical",
        "unit": "1", "better": "lower",
        "ours": column(rows, "length_spherical"), "arms": {key: column(rows, key) for key in rows[0]},
        "criterion": "in every seed: spherical path at most half as long as through the same images in "
                     "random order, interpolants at least 0.8 times as often readable as the ends",
        "statistic": min(min(0.5 / row["length_spherical"], row["readable_ratio"] / 0.8) for row in rows),
        "threshold": 1.0,
    }  # fmt: skip


def _paths(ign: IGN, yard: Yardstick, seed: int, paths: int = 100, count: int = 11) -> Figures:
    """Relative length and readable share along straight and spherical paths between noises."""
    a, b = ign.source(2 * paths, seed).chunk(2)
    t = torch.linspace(0, 1, count).view(-1, 1, 1, 1, 1)
    angle = torch.arccos(torch.cosine_similarity(a.flatten(1), b.flatten(1))).view(1, -1, 1, 1, 1)
    ways = {
        "linear": (1 - t) * a + t * b,
        "spherical": (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle),
    }
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    found: Figures = {}
    for name, z in ways.items():
        y = ign.apply(z.flatten(0, 1), 1, "z").unflatten(0, (count, paths))
        found[f"length_{name}"] = float(_length(y) / _length(y[order]))
        confident = (
            yard.judge.probabilities(y.flatten(0, 1)).amax(1).unflatten(0, (count, paths)) >= CONFIDENT
        )
        found[f"readable_{name}"] = float(confident[1:-1].float().mean())
        found["readable_ends"] = float(confident[[0, -1]].float().mean())
    found["readable_ratio"] = found["readable_spherical"] / found["readable_ends"]
    return found


def _length(y: Float[Tensor, "t n c h w"]) -> Float[Tensor, ""]:
    """Mean length of the paths y[0], y[1], …"""
    return y.diff(dim=0).flatten(2).norm(dim=2).sum(0).mean()


def out_of_distribution(seeds: int) -> dict[str, Any]:
    """AUROC of the drift d(x) for held-out digits against what is none, beside two plain scores."""
    yard = Yardstick(SMALL)
    plain = replace(SMALL, idem=0.0, tight=0.0)
    rows: list[Figures] = []
    for seed in range(seeds):
        ign = small(seed)
        scores: dict[str, Callable[[Tensor], Tensor]] = {
            "drift": ign.drift,
            "drift_l1": IGN(ign.net, ign.noise, "l1").drift,
            "drift_of_two_applications": lambda x, ign=ign: distance(ign.project(x, 2), x, "l2"),
            "drift_tight_0.1": trained(replace(SMALL, tight=0.1, seed=seed), "listing").drift,
            "autoencoder": trained(replace(plain, seed=seed), "autoencoder").drift,
            "nearest": lambda x: nearest_distance(x.flatten(1), yard.known.flatten(1)),
        }
        outside = _outside(yard.held_out, seed)
        rows.append({
            f"{score}_{name}": auroc(function(yard.held_out), function(x))
            for score, function in scores.items()
            for name, x in outside.items()
        })  # fmt: skip
    gain = results.paired(column(rows, "drift_letters"), column(rows, "autoencoder_letters"), "higher")
    return {
        "claim": "The drift d(x) tells digits from letters at least as well as a plain auto-encoder's error",
        "source": "section 2 (the drift measures the distance to the manifold); no figure is published",
        "preset": "small", "data": f"{yard.test.name} held out", "metric": "auroc_letters", "unit": "1",
        "better": "higher", "ours": column(rows, "drift_letters"),
        "against": ("error of an auto-encoder of the same net", column(rows, "autoencoder_letters")),
        "arms": {key: column(rows, key) for key in rows[0]},
        "criterion": "upper end of the paired 95 % interval of the gain is not below 0",
        "statistic": gain.high, "threshold": 0.0,
        "explanation": _tried(rows),
        "details": {"letters": "A-Z and a-z drawn by Pillow's built-in font at 8x8, shifted at random"},
    }  # fmt: skip


def _tried(rows: list[Figures]) -> str:
    """What each way to score letters reached, in words."""
    reached = {
        key.removesuffix("_letters").replace("_", " "): sum(column(rows, key)) / len(rows)
        for key in rows[0] if key.endswith("_letters")
    }  # fmt: skip
    listed = ", ".join(f"{name} {value:.3f}" for name, value in reached.items())
    return (
        "At the preset's tightness weight of 0.5 f also moves digits, and its drift tells letters less well "
        f"than an auto-encoder's error. Mean AUROC of all ways tried: {listed}; other sets are near 1 for "
        "every score."
    )


def auroc(inside: Float[Tensor, " n"], outside: Float[Tensor, " m"]) -> float:
    """Probability that an outside score exceeds an inside score, ties counting half."""
    above = (outside[:, None] > inside[None]).double() + 0.5 * (outside[:, None] == inside[None]).double()
    return float(above.mean())


def _outside(x: Float[Tensor, "n 1 8 8"], seed: int) -> dict[str, Tensor]:
    """Images that are no digits: letters, inverted digits, digits with shuffled pixels, uniform noise."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(64, generator=draw)
    return {
        "letters": letters(len(x), draw),
        "inverted": -x,
        "shuffled": x.flatten(1)[:, order].view_as(x),
        "noise": torch.rand(x.shape, generator=draw) * 2 - 1,
    }


def letters(n: int, draw: torch.Generator) -> Float[Tensor, "n 1 8 8"]:
    """Letters as bright as digits: drawn at 32x32 and averaged to 8x8, at random places."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    font = ImageFont.load_default(40)
    found = []
    for _ in range(n):
        index, right, down = (int(torch.randint(0, size, (), generator=draw)) for size in (52, 5, 4))
        canvas = Image.new("L", (32, 32))
        ImageDraw.Draw(canvas).text((3 + right, -9 + down), alphabet[index], fill=255, font=font)
        found.append(torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(1, 32, 32))
    tiny = torch.nn.functional.avg_pool2d(torch.stack(found).float(), 4)
    return (tiny / tiny.amax((2, 3), keepdim=True).clamp_min(1)) * 2 - 1


def memorisation(seeds: int) -> dict[str, Any]:
    """Distance of samples to their nearest training image, over that of held-out images."""
    yard = Yardstick(SMALL)
    rows = [
        geometry(small(seed).sample(SAMPLES, 1, seed), yard.known, yard.held_out) for seed in range(seeds)
    ]
    ratios = column(rows, "memorisation")
    return {
        "claim": "Samples are no copies of training images",
        "source": "not in the paper", "preset": "small", "data": yard.train.name,
        "metric": "median_distance_to_train_over_held_out", "unit": "1", "better": "higher", "ours": ratios,
        "arms": {"diversity": column(rows, "diversity")},
        "criterion": "ratio at least 0.7 in every seed (1 = no nearer than held-out images)",
        "statistic": min(ratios), "threshold": 0.7,
    }  # fmt: skip


CLAIMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "ablation-losses": ablation_losses,
    "norm-clamp": norm_clamp,
    "noise-fourier": noise_fourier,
    "refinement": refinement,
    "latent": latent,
    "ood": out_of_distribution,
    "memorisation": memorisation,
}
