"""Batches addressed by (seed, step): a killed run that resumes at a step sees the batches it would have seen.

Used by every paper that learns. The order is a pure function of its arguments (raw words of NumPy's Philox
generator, whose stream is fixed across versions and platforms), so any number of processes can compute it.
"""

import functools
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from paperkit import UserError


def permutation(n: int, seed: int, purpose: str, epoch: int = 0) -> Int64[np.ndarray, "n"]:
    """A permutation of 0..n-1 that depends on nothing but its arguments."""
    return np.argsort(_words(n, seed, purpose, epoch), kind="stable")


def _words(n: int, seed: int, purpose: str, epoch: int) -> np.ndarray:
    if not 0 <= seed < 2**64:
        raise UserError(f"a seed is a whole number from 0 to 2^64 - 1, got {seed}")
    stream = np.random.Philox(key=seed | epoch << 64, counter=zlib.crc32(purpose.encode()) << 192)
    return stream.random_raw(n)


@functools.lru_cache(maxsize=4)
def _epoch(n: int, seed: int, epoch: int) -> Int64[np.ndarray, "n"]:
    order = permutation(n, seed, "batches", epoch)
    order.setflags(write=False)
    return order


def batch_indices(n: int, batch: int, seed: int, step: int) -> Int64[np.ndarray, "batch"]:
    """The `batch` positions out of `n` that step `step` (from 0) trains on.

    Every epoch is a permutation by (seed, epoch), cut into n // batch whole batches; the n % batch positions
    that remain are dropped (other ones in every epoch), so no batch holds a position twice. With n < batch, a
    batch is filled with whole permutations one after another: each position stands in it batch / n times,
    rounded down or up. One of several processes takes `[rank::processes]`. Raises `UserError` for n or batch
    below 1, step below 0.
    """
    if n < 1 or batch < 1 or step < 0:
        raise UserError(
            f"batches need n >= 1, batch >= 1 and step >= 0, got n={n}, batch={batch}, step={step}"
        )
    if n < batch:
        epochs = -(-batch // n)
        return np.concatenate([_epoch(n, seed, step * epochs + k) for k in range(epochs)])[:batch]
    epoch, place = divmod(step, n // batch)
    return _epoch(n, seed, epoch)[place * batch : (place + 1) * batch].copy()


class _Steps(Sampler[list[int]]):
    """The batches of one process from step `start` on, without end."""

    def __init__(self, n: int, batch: int, seed: int, start: int, rank: int, processes: int):
        self._n, self._batch, self._seed = n, batch, seed
        self._start, self._rank, self._processes = start, rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        step = self._start
        while True:
            yield batch_indices(self._n, self._batch, self._seed, step)[
                self._rank :: self._processes
            ].tolist()
            step += 1


class Loader:
    """Endless batches (images, labels) from step `start` on; each `iter()` begins there again.

    `data` gives (image, label) items of one shape. The batches are those of `batch_indices`, loaded by
    `workers` background processes. With several `processes`, each takes its `rank`'s part of the same global
    batch. `flip` mirrors each image left to right with probability 1/2, by (seed, step) as well. Raises
    `UserError` for a batch that the processes cannot share equally.
    """

    def __init__(
        self,
        data: Dataset[tuple[Tensor, int]],
        batch: int,
        seed: int,
        start: int = 0,
        *,
        flip: bool = False,
        workers: int = 0,
        rank: int = 0,
        processes: int = 1,
    ):
        n = len(data)  # pyright: ignore[reportArgumentType]: a map-style Dataset has a length
        batch_indices(n, batch, seed, start)  # refuses bad sizes here and not in the first step
        if batch % processes or not 0 <= rank < processes or workers < 0:
            raise UserError(f"a batch of {batch} cannot be shared by {processes} processes (rank {rank})")
        self._seed, self._start, self._flip = seed, start, flip
        self._batch, self._rank, self._processes = batch, rank, processes
        steps = _Steps(n, batch, seed, start, rank, processes)
        self._loader = DataLoader(data, batch_sampler=steps, num_workers=workers)

    def __iter__(self) -> Iterator[tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, "b"]]]:
        for step, (images, labels) in enumerate(self._loader, self._start):
            yield (self._mirror(images, step) if self._flip else images), labels

    def _mirror(self, images: Tensor, step: int) -> Tensor:
        bits = _words(self._batch, self._seed, "flip", step)[self._rank :: self._processes] >> 63
        return torch.where(torch.from_numpy(bits == 1)[:, None, None, None], images.flip(-1), images)
