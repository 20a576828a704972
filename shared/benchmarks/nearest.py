"""Benchmark `bench-nearest`: exact search against `torch.cdist` + argmin and faiss exact search.

    uv run --package paperkit --group bench python shared/benchmarks/nearest.py

Patches of 7 x 7 x 3 numbers from a scikit-image photograph: keys from a blurred version (shrunk to 3/4 and
enlarged again), queries from the same photograph stretched to another shape, as gpnn's retargeting asks
for; and Gaussian vectors of 147 numbers, which no index can prune. The arms take turns. Unfolding the
patches is not timed for the rivals, but its memory counts: ours needs none. Where a case says so, the
rivals answer every n-th query only and their time counts n-fold: their work is the same for each query.
cdist goes by as many rows at a time as are quickest. Writes shared/results/bench-nearest.json.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from paperkit import results
from paperkit.nearest import Patches, nearest
from paperkit.resize import resize
from paperkit.timing import growth_mib
from skimage import data

WHOLE = 10_000
"""Vectors up to which cdist holds its whole table where memory is measured, as its users write it."""
EXPLANATION = (
    "Among random vectors no pair can be skipped: the matrix product is nearly all that faiss does, and the"
    " second look and the float64 scores that make our index exact come on top. A product in bfloat16, larger"
    " tiles and fewer probes narrowed the gap and did not close it. Patches of photographs are in details."
)

HERE = Path(__file__).resolve().parents[1]
WIDTH = 147
CHUNKS = (256, 512, 1024, 2048, 4096)
CASES = [  # content, patches, alpha, the rivals' share of the queries
    ("photograph", 10_000, math.inf, 1),
    ("photograph", 10_000, 5e-3, 1),
    ("random", 10_000, math.inf, 1),
    ("random", 10_000, 5e-3, 1),
    ("photograph", 50_000, math.inf, 5),
    ("photograph", 50_000, 5e-3, 10),
    ("random", 50_000, math.inf, 10),
    ("photograph", 200_000, math.inf, 100),
    ("photograph", 200_000, 5e-3, 100),
]


def inputs(content: str, count: int):
    """Queries and keys, as ours takes them."""
    if content == "random":
        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randn(count, WIDTH, generator=generator) for _ in range(2))
    image = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    side = round(math.sqrt(count))
    keys = resize(resize(image, size=side + 6), scale=0.75)
    keys = resize(keys, scale=4 / 3, size=side + 6)
    height = round(1.25 * side)
    queries = resize(image, size=(height + 6, count // height + 6))
    return Patches(queries, 7), Patches(keys, 7)


def vectors(items) -> torch.Tensor:
    """The same, as the rivals take them."""
    if isinstance(items, torch.Tensor):
        return items
    return torch.nn.functional.unfold(items.image[None], 7)[0].T.contiguous()


# ---- The arms: index of the nearest key, for queries and keys


def ours(queries, keys, alpha: float) -> torch.Tensor:
    return nearest(queries, keys, alpha).index


def cdist(
    queries: torch.Tensor, keys: torch.Tensor, alpha: float, chunk: int, share: int = 1
) -> torch.Tensor:
    """All distances, `chunk` rows at a time; for finite alpha a pass for each key's minimum comes first."""
    parts = queries[: -(-len(queries) // share)].split(chunk)
    if share == len(parts) == 1 and math.isfinite(alpha):  # the whole table fits: compute it once
        distance = torch.cdist(queries, keys).square_().div_(WIDTH)
        return distance.div_(alpha + distance.amin(0)).argmin(1)
    if not math.isfinite(alpha):
        return torch.cat([torch.cdist(part, keys).argmin(1) for part in parts])
    least = torch.full((len(keys),), math.inf)
    for part in parts:
        torch.minimum(least, torch.cdist(part, keys).amin(0), out=least)
    scale = alpha + least.square() / WIDTH
    return torch.cat([torch.cdist(part, keys).square_().div_(WIDTH).div_(scale).argmin(1) for part in parts])


def flat(queries: torch.Tensor, keys: torch.Tensor, alpha: float, share: int = 1) -> torch.Tensor:
    """faiss exact search; the normalised score as an inner product of two more numbers (gpnn spec 9.4)."""
    q, k = queries.numpy(), keys.numpy()
    some = q[: -(-len(q) // share)]
    if not math.isfinite(alpha):
        index = faiss.IndexFlatL2(WIDTH)
        index.add(k)
        return torch.from_numpy(index.search(some, 1)[1][:, 0])
    index = faiss.IndexFlatL2(WIDTH)
    index.add(q)
    least = np.zeros(len(k), np.float32)
    few = k[: -(-len(k) // share)]
    least[: len(few)] = index.search(few, 1)[0][:, 0].clip(0)
    del index
    weight = 1 / (alpha + least[:, None] / WIDTH)
    square = (k * k).sum(1, keepdims=True)
    index = faiss.IndexFlatIP(WIDTH + 2)
    index.add(np.concatenate([2 * weight * k, -weight, -weight * square], 1))
    extended = np.concatenate([some, (some * some).sum(1, keepdims=True), np.ones_like(some[:, :1])], 1)
    return torch.from_numpy(index.search(extended, 1)[1][:, 0])


def arm(
    name: str, content: str, count: int, alpha: float, share: int, chunk: int
) -> Callable[[], torch.Tensor]:
    """The call that is timed; what it needs is made before."""
    queries, keys = inputs(content, count)
    if name == "ours":
        return lambda: ours(queries, keys, alpha)
    q, k = vectors(queries), vectors(keys)
    if name == "cdist":
        return lambda: cdist(q, k, alpha, chunk, share)
    return lambda: flat(q, k, alpha, share)


def best_chunk(count: int) -> int:
    """The number of rows with which cdist is quickest, the whole table included where it fits."""
    keys = torch.randn(count, WIDTH)
    speed = {}
    for chunk in CHUNKS + ((count,) if count <= 10_000 else ()):
        queries = torch.randn(chunk, WIDTH)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            torch.cdist(queries, keys).argmin(1)
            seconds.append(time.perf_counter() - start)
        speed[chunk] = min(seconds) / chunk
    return min(speed, key=lambda chunk: speed[chunk])


# ---- Memory: peak above the process before, in a process of its own


def peak_mib(
    name: str, content: str, count: int, alpha: float, share: int, chunk: int, threads: int
) -> float:
    words = [name, content, str(count), str(alpha), str(share), str(chunk), str(threads)]
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", *words]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(name: str, content: str, count: str, alpha: str, share: str, chunk: str, threads: str) -> None:
    """Print the peak of one call above what the libraries and the images take, in MiB (Linux)."""
    set_threads(int(threads))
    arm(name, content, 2_500, float(alpha), 1, 256)()  # libraries, their buffers, compiled code
    given = inputs(content, int(count))
    if name == "ours":
        print(growth_mib(lambda: ours(*given, float(alpha))))
        return
    print(growth_mib(lambda: theirs(name, given, float(alpha), int(share), int(chunk))))


def theirs(name: str, given: tuple, alpha: float, share: int, chunk: int) -> None:
    """A rival's whole work, the unfolding of the patches included."""
    q, k = (vectors(items) for items in given)
    if name == "cdist":
        cdist(q, k, alpha, chunk, share)
    else:
        flat(q, k, alpha, share)


# ---- The run


def set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)


def run_case(content: str, count: int, alpha: float, share: int, repeats: int, threads: int) -> dict:
    """Time and memory of the three arms."""
    chunk = best_chunk(count)
    names = ("ours", "cdist", "faiss")
    arms = {name: arm(name, content, count, alpha, share, chunk) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    found = {}
    for turn in range(repeats + 1):
        for name, call in arms.items():
            start = time.perf_counter()
            found[name] = call()
            spent = time.perf_counter() - start
            if turn or spent > 20:  # the first turn warms up
                seconds[name].append(spent * (share if name != "ours" else 1))
    shown = {name: statistics.median(values) for name, values in seconds.items()}
    table = count if count <= WHOLE else chunk
    memory = {name: peak_mib(name, content, count, alpha, share, table, threads) for name in names}
    few = len(found["cdist"])
    wrong = (
        {name: int((found[name] != found["ours"][:few]).sum()) for name in names[1:]} if share == 1 else None
    )
    return {
        "content": content, "patches": count, "alpha": alpha if math.isfinite(alpha) else "inf",
        "seconds": shown, "values": seconds, "repeats": len(seconds["cdist"]), "rivals_share": f"1/{share}",
        "ratio": min(shown["cdist"], shown["faiss"]) / shown["ours"],
        "peak_mib": memory, "memory_share_of_cdist": memory["ours"] / memory["cdist"], "cdist_chunk": chunk,
        "indices_unlike_ours": wrong,
    }  # fmt: skip


def record(cases: list[dict], threads: int, wall: float, folder: Path) -> None:
    """Write bench-nearest.json (speed, the worst case) and nearest-memory.json."""
    worst = min(cases, key=lambda case: case["ratio"])
    rival = min(("cdist", "faiss"), key=lambda name: worst["seconds"][name])
    common = {
        "paper": "paperkit", "wall_s": wall,
        "data": "scikit-image astronaut, 7x7x3 patches; Gaussian vectors of 147",
        "command": "uv run --package paperkit --group bench python shared/benchmarks/nearest.py",
    }  # fmt: skip
    named = {f"{case['content']}-{case['patches']}-alpha-{case['alpha']}": case for case in cases}
    speed = results.benchmark(
        **common, id="nearest",
        claim="Exact search is never slower than the better of torch.cdist and faiss; worst case shown",
        ours=worst["values"]["ours"], against=(f"{rival}, the better of the two", worst["values"][rival]),
        target=1.0, peak_mib=(worst["peak_mib"]["ours"], worst["peak_mib"][rival]),
        threads=threads, device="cpu",
        details={"cases": named, "faiss": faiss.__version__}, explanation=EXPLANATION,
    )  # fmt: skip
    whole = {name: case for name, case in named.items() if case["patches"] <= WHOLE}
    memory = results.claim(
        **common, id="nearest-memory", preset="none", source="house rule",
        claim="Exact search takes at most a quarter of the memory of torch.cdist with its whole table",
        metric="peak_memory_over_cdist", unit="1", better="lower",
        ours=[case["memory_share_of_cdist"] for case in whole.values()],
        criterion=f"largest share over the cases of {WHOLE:,} vectors, where the whole table fits, <= 0.25",
        statistic=-max(case["memory_share_of_cdist"] for case in whole.values()), threshold=-0.25,
        details={"peak_mib": {name: case["peak_mib"] for name, case in named.items()}},
    )  # fmt: skip
    for each in (speed, memory):
        print(results.write(folder, each))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="for every arm")
    parser.add_argument("--repeats", type=int, default=5, help="per case, after one warm-up turn")
    parser.add_argument(
        "--only", default="", help="cases whose name holds this, e.g. random-10000; writes nothing"
    )
    parser.add_argument("--measure", nargs=7, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    set_threads(options.threads)
    start, cases = time.perf_counter(), []
    for content, count, alpha, share in CASES:
        if options.only not in f"{content}-{count}":
            continue
        # Minutes each: two turns after the warm-up tell enough of a case that is never the closest.
        repeats = options.repeats if count < 200_000 else 2
        case = run_case(content, count, alpha, share, repeats, options.threads)
        cases.append(case)
        times = "  ".join(f"{name} {value:.3f} s" for name, value in case["seconds"].items())
        memory = "  ".join(f"{name} {value:.0f}" for name, value in case["peak_mib"].items())
        print(
            f"[{time.perf_counter() - start:4.0f} s] {content} {count} alpha {alpha:g}: {times}"
            f"  ratio {case['ratio']:.2f}  MiB {memory}"
            f" ({case['memory_share_of_cdist']:.2f} of cdist, chunk {case['cdist_chunk']})"
            f"  n {case['repeats']}  other indices {case['indices_unlike_ours']}",
            flush=True,
        )
    if not options.only:
        record(cases, options.threads, time.perf_counter() - start, HERE / "results")


if __name__ == "__main__":
    main()
