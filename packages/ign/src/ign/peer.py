"""The public implementation that ours is compared with: xyfJASON/IGN-pytorch, run as it is.

Its files are imported or started unmodified from a checkout that the user names; only its command line and,
for the benchmark, the logger that it calls after every step are used from outside. Used by `ign bench peer`
and `ign reproduce mnist-quality`.
"""

import contextlib
import copy
import os
import runpy
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from paperkit import UserError, images, rng, timing
from paperkit.run import atomic
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ign import data
from ign.config import TrainConfig
from ign.method import Noise, Objective, Shared
from ign.model import network

NAME = "xyfJASON/IGN-pytorch"
CONFIG = Path("configs", "ign_mnist.yaml")
SIDE = 32
"""Its images: MNIST resized to this side."""
SAVE_EVERY = {512: 1, 64: 50}
"""Steps between its checkpoints, by batch size: some seconds on one CPU core."""


@dataclass(frozen=True)
class Peer:
    """A checkout of the public implementation."""

    folder: Path

    def __post_init__(self):
        for file in (Path("train.py"), Path("sample.py"), CONFIG):
            if not (self.folder / file).exists():
                raise UserError(f"{self.folder} has no {file}: --peer names a checkout of {NAME}")
        for module in ("omegaconf", "tensorboard"):
            if not importable(module):
                raise UserError(f"{NAME} imports {module}: install it by uv sync --group bench")

    @property
    def version(self) -> str:
        """Its name and the commit, where git knows it."""
        words = ["git", "-C", str(self.folder), "rev-parse", "--short", "HEAD"]
        found = subprocess.run(words, capture_output=True, text=True, check=False)
        return f"{NAME} {found.stdout.strip() or 'at a commit that git does not know'}"

    def train(
        self, out: Path, seconds: float, seed: int, batch: int = 512, width: int = 64
    ) -> tuple[Path, int]:
        """Its training on MNIST until the first checkpoint after `seconds`; the weights, and the steps made.

        The clock starts when it says that training starts: imports and data loading are not counted.
        """
        words = ["train.py", "-c", str(CONFIG), "-e", str(out.absolute()), "-ni"]
        words += ["--seed", str(seed), "--data.params.root", str(unpacked_mnist(out.parent).absolute())]
        words += ["--train.batch_size", str(batch), "--model.params.dim", str(width)]
        words += ["--train.sample_freq", "0", "--train.save_freq", str(SAVE_EVERY[batch])]
        words += ["--train.n_steps", "1000000"]
        with open(out.parent / f"{out.name}.log", "w") as log:
            process = subprocess.Popen([sys.executable, *words], cwd=self.folder, stdout=log, stderr=log)
            try:
                since = self._started(process, out)
                while time.monotonic() < since + seconds:
                    self._alive(process, out)
                    time.sleep(0.2)
                before = len(_saved(out))
                while len(_saved(out)) == before:
                    self._alive(process, out)
                    time.sleep(0.05)
                time.sleep(1)  # the checkpoint's last file is being written
            finally:
                process.kill()
                process.wait()
        newest = _saved(out)[before]
        return newest / "model.pt", int(newest.name.removeprefix("step")) + 1

    def _started(self, process: subprocess.Popen, out: Path) -> float:
        while True:
            self._alive(process, out)
            if any("Start training" in file.read_text() for file in out.glob("output-*.log")):
                return time.monotonic()
            time.sleep(0.05)

    def _alive(self, process: subprocess.Popen, out: Path) -> None:
        if process.poll() is not None:
            raise UserError(f"{NAME} ended by itself: see {out.parent / f'{out.name}.log'}")

    def sample(
        self, weights: Path, n: int, k: int, seed: int, out: Path, width: int = 64
    ) -> UInt8[Tensor, "n 1 h w"]:
        """`n` samples after `k` applications, by its own sampling program (PNG files, read back)."""
        words = ["sample.py", "-c", str(CONFIG), "--weights", str(weights.absolute()), "--seed", str(seed)]
        words += ["--n_samples", str(n), "--repeat", str(k), "--save_dir", str(out.absolute())]
        words += ["--model.params.dim", str(width)]
        done = subprocess.run([sys.executable, *words], cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{NAME} could not sample: {last}")
        return torch.stack([images.read(out / f"{index}.png")[:1] for index in range(n)])


def importable(module: str) -> bool:
    """Whether a module is installed."""
    from importlib.util import find_spec

    return find_spec(module) is not None


def _saved(out: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(file.parent for file in (out / "ckpt").glob("step*/meta.pt"))


def unpacked_mnist(folder: Path) -> Path:
    """MNIST's four files without compression, as torchvision wants them, written into `folder`."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for split, stem in (("train", "train"), ("test", "t10k")):
        loaded = data.load(TrainConfig(data="MNIST"), split)
        pixels, labels = loaded.pixels[:, 0].numpy(), loaded.labels.to(torch.uint8).numpy()
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            # IDX: magic number (type and number of axes), the sizes, the bytes.
            header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
            with atomic(raw / f"{stem}-{kind}-ubyte") as stream:
                stream.write(header + array.tobytes())
    return folder


def to_28(x: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c 28 28"]:
    """Its images as the judge takes them: 28x28, in [-1, 1], reduced with antialiasing."""
    small = nn.functional.interpolate(
        images.to_float(x), size=(28, 28), mode="bilinear", antialias=True, align_corners=False
    )
    return small.clamp(-1, 1)


# ---- ign bench peer: one step of each, in turns ----------------------------------------------------------


class Still(Dataset):
    """Fixed random images instead of MNIST, so that loading costs next to nothing (--data.target)."""

    def __init__(self, root: str = "", img_size: int = SIDE, split: str = "train"):
        self.images = rng.normal((512, 1, img_size, img_size), 0, 0, "still").clamp(-1, 1)

    def __len__(self) -> int:
        return 60_000

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index % len(self.images)], 0


class Roleless(nn.Module):
    """The public network as our engines call it; its norms use each batch's own statistics."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, roles: tuple[str, ...]) -> Tensor:
        return self.net(x)


def step_times(peer: Peer, batch: int, repeats: int, threads: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of one step of each side in turns, and what loading the public side's batch costs of it.

    The public program runs in this process; after each of its steps it calls its logger, where our steps are
    taken and the clock of its next step starts. Rows: `peer`, `ours` (our engine on its very network),
    `ours_own_net` (our network of the same layers).
    """
    torch.set_num_threads(threads)
    times: dict[str, list[float]] = {"peer": [], "ours": [], "ours_own_net": []}
    with tempfile.TemporaryDirectory() as scratch, _inside(peer):
        # Modules of the checkout, found through the working directory: no dependencies of this package.
        StatusTracker = import_module("utils.logger").StatusTracker
        theirs = import_module("models.autoencoder").AutoEncoder(
            img_channels=1, dim=64, dim_mults=[1, 2, 4], init_type="normal"
        )
        own = network(TrainConfig(net="dcgan", width=64, code=256, init="dcgan"), (1, SIDE, SIDE))
        steps = {
            "ours": _stepper(Roleless(copy.deepcopy(theirs)), batch),
            "ours_own_net": _stepper(own, batch),
        }
        clock = [time.perf_counter()]
        bar = tqdm(total=repeats + 3, desc="steps in turns", disable=None, leave=False)

        def turn(self, name, status, step, write_tb=None) -> None:
            """In the place of its logger: note its time, take our steps, start its clock again."""
            taken = {"peer": time.perf_counter() - clock[0]}
            for row, run in steps.items():
                since = time.perf_counter()
                run()
                taken[row] = time.perf_counter() - since
            if step >= 3:
                for row, seconds in taken.items():
                    times[row].append(seconds)
            bar.update()
            clock[0] = time.perf_counter()

        kept, StatusTracker.track_status = StatusTracker.track_status, turn
        sys.argv = _words(scratch, batch, repeats + 3)
        try:
            runpy.run_path("train.py", run_name="__main__")
        finally:
            StatusTracker.track_status = kept
            bar.close()
    return times, _loading(batch)


def _stepper(net: nn.Module, batch: int):
    """Our default step: noise, the shared second application, Adam; its objective, losses read out."""
    net.train()
    optimiser = torch.optim.Adam(net.parameters(), 1e-4, betas=(0.5, 0.999), fused=True)
    engine, objective = Shared(net), Objective()
    noise = Noise("fft", (1, SIDE, SIDE))
    x = rng.normal((batch, 1, SIDE, SIDE), 0, 0, "x").clamp(-1, 1)
    noise.fit([x])

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        losses = engine.step(x, noise(torch.randn(batch, noise.channels, SIDE, SIDE)), objective)
        optimiser.step()
        [value.item() for value in (losses.rec, losses.idem, losses.tight)]

    return run


def _words(scratch: str, batch: int, steps: int) -> list[str]:
    """Its command line for so many steps on `Still`, without checkpoints."""
    words = ["train.py", "-c", str(CONFIG), "-e", f"{scratch}/run", "-ni", "--train.batch_size", str(batch)]
    words += ["--data.target", "ign.peer.Still", "--dataloader.num_workers", "0"]
    words += ["--dataloader.prefetch_factor", "null", "--dataloader.pin_memory", "false"]
    return [*words, "--train.n_steps", str(steps), "--train.sample_freq", "0", "--train.save_freq", "0"]


def peak_mib(peer: Peer, side: Literal["ours", "peer"], threads: int, batch: int) -> float:
    """Peak memory of a process that takes two steps of a side on the public network, imports included."""
    code = f"from ign.peer import print_peak; print_peak({str(peer.folder)!r}, {side!r}, {threads}, {batch})"
    return timing.in_own_process(code)


def print_peak(folder: str, side: str, threads: int, batch: int) -> None:
    """Print this process's peak memory in MiB after two steps; both sides import what the public one does."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch, _inside(Peer(Path(folder))):
        if side == "peer":
            sys.argv = _words(scratch, batch, 2)
            runpy.run_path("train.py", run_name="__main__")
        else:
            runpy.run_path("train.py", run_name="imported")
            net = import_module("models.autoencoder").AutoEncoder(
                img_channels=1, dim=64, dim_mults=[1, 2, 4], init_type="normal"
            )
            run = _stepper(Roleless(net), batch)
            run()
            run()
    print(timing.peak_mib())


def _loading(batch: int) -> float:
    """Median seconds in which the public side's loader makes a batch of `Still`."""
    taken, since = [], time.perf_counter()
    for index, _ in enumerate(DataLoader(Still(), batch_size=batch, shuffle=True)):
        taken.append(time.perf_counter() - since)
        since = time.perf_counter()
        if index == 20:
            break
    return sorted(taken)[len(taken) // 2]


@contextlib.contextmanager
def _inside(peer: Peer) -> Iterator[None]:
    """Its folder as working directory and first place of imports; arguments and both are restored."""
    argv, place = sys.argv, os.getcwd()
    os.chdir(peer.folder)
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.argv = argv
        os.chdir(place)
        sys.path.remove("")
