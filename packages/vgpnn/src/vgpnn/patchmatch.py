"""Weighted PatchMatch between the space-time patches of two videos, on any device (spec 2.6, 9.2).

One round tries, for every query patch at once: a key drawn at random; the present key with jitter; for the
six neighbours at a jump along each axis the neighbour's key, moved back by the jump; and these with jitter.
Candidates are tried one kind after another and accepted in place, so that a match travels several jumps in
one round and the score of a query never rises. With weights the score is w_j D_ij, w_j = 1 / (alpha + min_i
D_ij), the minimum being found by the same walk from keys to queries.

Random numbers are a hash of (key, round and kind, query): no generator's state, no tile and no thread order
enters, and the torch and numba paths draw the same. `_walk` is the numba path (CPU); here is the torch path.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from paperkit import UserError
from paperkit.nearest import Patches
from torch import Tensor

from vgpnn.search import Found, Schedule

MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Odd multipliers of splitmix64's hash."""
RANDOM, JITTER = 0, 1
"""Kinds of candidate; the neighbours have the numbers 2 .. 13."""


def signed(number: int) -> int:
    """The same 64 bits as a signed number."""
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number


def bits(key: int, number: int, position: Int64[Tensor, "n"]) -> Int64[Tensor, "n"]:
    """63 random bits for each position: splitmix64's finaliser over key, number and position."""
    x = position * signed(MIX[0]) + signed(key + number * MIX[1])
    for shift, factor in ((30, MIX[1]), (27, MIX[2])):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * signed(factor)
    return (x ^ ((x >> 31) & (2**33 - 1))) & (2**63 - 1)


def below(drawn: Int64[Tensor, "n"], high: int) -> Int64[Tensor, "n"]:
    """Uniform whole numbers 0 .. high - 1 from the upper 31 of 63 bits; high below 2^32."""
    return ((drawn >> 32) * high) >> 31


def jitter(drawn: Int64[Tensor, "n"], radius: int) -> list[Int64[Tensor, "n"]]:
    """Three whole numbers in [-radius, radius] from 63 bits, 20 each."""
    return [(((drawn >> (20 * k)) & 0xFFFFF) * (2 * radius + 1) >> 20) - radius for k in range(3)]


class PatchMatch:
    """An approximate search; the field of the last search of a sample is where the next one starts."""

    kind = "patchmatch"

    def __init__(self, keys: Patches, schedule: Schedule, memory: int) -> None:
        self.keys, self.schedule, self.memory = keys, schedule, memory
        valid = keys.valid()
        if valid is not None and not valid.any():
            raise UserError("the mask leaves no key: no patch lies wholly inside it")
        self.valid = None if valid is None or bool(valid.all()) else valid
        self.forget()

    def forget(self) -> None:
        """Start another sample."""
        self._back: Tensor | None = None

    def search(
        self,
        y: Float[Tensor, "c t h w"],
        alpha: float,
        guess: Int64[Tensor, "gt gh gw"] | None,
        draw: int = 0,
    ) -> Found:
        """A good key of every patch of y."""
        queries = Patches(y, self.keys.window)
        keys, weight = Patches(self.keys.image, self.keys.window), None
        if math.isfinite(alpha):
            back = walk(keys, queries, None, None, self.schedule, draw ^ 1, self.memory)
            self._back, least = back.run(self._back)
            weight = 1 / (alpha + least)
        forth = walk(queries, keys, weight, self.valid, self.schedule, draw, self.memory)
        index, score = forth.run(None if guess is None else guess.flatten())
        distance = score if weight is None else score / weight[index]
        return Found(index.view(queries.grid), distance.view(queries.grid))


def walk(
    a: Patches,
    b: Patches,
    weight: Float[Tensor, "k"] | None,
    valid: Bool[Tensor, "k"] | None,
    schedule: Schedule,
    key: int,
    memory: int,
) -> "Walk":
    """The quickest walk on this device: compiled by numba on a CPU, by torch.compile on a GPU."""
    from vgpnn._walk import CompiledWalk

    kind = CompiledWalk if a.image.device.type == "cpu" else Walk
    return kind(a, b, weight, valid, schedule, key, memory)


class Walk:
    """One approximate field from the patches of `a` to those of `b`."""

    def __init__(
        self,
        a: Patches,
        b: Patches,
        weight: Float[Tensor, "k"] | None,
        valid: Bool[Tensor, "k"] | None,
        schedule: Schedule,
        key: int,
        memory: int,
    ) -> None:
        self.grid, self.among, self.patch = a.grid, b.grid, a.window
        self.count, self.keys = math.prod(a.grid), math.prod(b.grid)
        self.a, self.b = flat_rows(a), flat_rows(b)
        self.width = a.image.shape[0]
        self.sizes = tuple(a.image.shape[1:]), tuple(b.image.shape[1:])
        self.numbers = self.width * math.prod(self.patch)
        dtype = torch.float64 if self.a.dtype == torch.float64 else torch.float32
        ones = torch.ones(1, device=self.a.device, dtype=dtype) / self.numbers
        self.factor = ones if weight is None else weight.to(dtype) / self.numbers
        self.weighted = weight is not None
        self.valid = valid
        self.slots = None if valid is None else valid.nonzero()[:, 0]
        self.schedule, self.key, self.memory = schedule, key, memory
        self.field = torch.empty(0, dtype=torch.int64)
        self.score = torch.empty(0)

    def run(self, guess: Int64[Tensor, "q"] | None) -> tuple[Int64[Tensor, "q"], Float[Tensor, "q"]]:
        """Improve a guess, or a field drawn at random; returns the field with its scores."""
        self.start(guess)
        for number, (jump, radius) in enumerate(
            zip(self.schedule.jumps, self.schedule.radii, strict=True), 1
        ):
            self.round(number, jump, radius)
        return self.found(), self.score

    def found(self) -> Int64[Tensor, "q"]:
        """The key of each query."""
        return self.field

    def start(self, guess: Int64[Tensor, "q"] | None) -> None:
        """A key drawn at random for each query, or the guess where it may be one."""
        self.field = self._first(guess)
        self.score = self.scored()

    def _first(self, guess: Tensor | None) -> Tensor:
        if guess is not None and self.valid is None:
            return guess.clone()
        drawn = self._any(bits(self.key, 0, torch.arange(self.count, device=self.a.device)))
        return drawn if guess is None or self.valid is None else torch.where(self.valid[guess], guess, drawn)

    def scored(self) -> Float[Tensor, "q"]:
        """The scores of the field."""
        return self.scores(torch.arange(self.count, device=self.a.device), self.field)

    def _any(self, drawn: Tensor) -> Tensor:
        if self.slots is None:
            return below(drawn, self.keys)
        return self.slots[below(drawn, len(self.slots))]

    def window(self, number: int) -> int:
        """Radius of the random candidate of a round; 0: anywhere."""
        if self.schedule.draw == "uniform":
            return 0
        return max(1, max(self.among) >> ((number - 1) % max(1, max(self.among).bit_length())))

    def round(self, number: int, jump: int, radius: int) -> None:
        """All kinds of candidate once."""
        self.attempt(number, RANDOM, 0, 0, self.window(number))
        self.attempt(number, JITTER, 0, 0, radius)
        kind = 2
        for near in (0, radius):
            for axis in range(3):
                for step in (jump, -jump):
                    self.attempt(number, kind, axis, step, near)
                    kind += 1

    def attempt(self, number: int, kind: int, axis: int, step: int, radius: int) -> None:
        """Try one kind of candidate for every query."""
        old = self.field.clone() if kind > JITTER else self.field
        room = max(1, self.memory // (16 * 8))
        for position in torch.arange(self.count, device=self.a.device).split(room):
            self._try(position, self._candidates(position, old, number, kind, axis, step, radius))

    def _candidates(self, position, old, number, kind, axis, step, radius) -> Int64[Tensor, "n"]:
        """Keys to try; -1: none."""
        drawn = bits(self.key, 16 * number + kind, position)
        if kind == RANDOM and not radius:
            return self._any(drawn)
        at, outside = coordinates(position, self.grid), None
        if kind <= JITTER:
            key = coordinates(old[position], self.among)
        else:
            near = list(at)
            near[axis] = near[axis] - step
            outside = (near[axis] < 0) | (near[axis] >= self.grid[axis])
            near[axis] = near[axis].clamp(0, self.grid[axis] - 1)
            key = coordinates(old[numbered(near, self.grid)], self.among)
            key[axis] = key[axis] + step
        if radius:
            key = [k + j for k, j in zip(key, jitter(drawn, radius), strict=True)]
        found = numbered([k.clamp(0, n - 1) for k, n in zip(key, self.among, strict=True)], self.among)
        if outside is None:
            return found
        same = [k.clamp(0, n - 1) for k, n in zip(at, self.among, strict=True)]
        return torch.where(outside, numbered(same, self.among) if self.schedule.identity else -1, found)

    def _try(self, position: Tensor, candidate: Tensor) -> None:
        worth = (candidate >= 0) & (candidate != self.field[position])
        if self.valid is not None:
            worth &= self.valid[candidate.clamp(min=0)]
        position, candidate = position[worth], candidate[worth]
        if not len(position):
            return
        score = self.scores(position, candidate)
        better = score < self.score[position]
        self.field[position[better]], self.score[position[better]] = candidate[better], score[better]

    def scores(self, i: Int64[Tensor, "n"], j: Int64[Tensor, "n"]) -> Float[Tensor, "n"]:
        """w_j D_ij of pairs, some at a time."""
        lanes = self.patch[2] * self.width
        room = max(1, self.memory // (16 * lanes + 64))
        parts = []
        for m, n in zip(i.split(room), j.split(room), strict=True):
            one = _origin(m, self.grid, self.sizes[0]) * self.width
            two = _origin(n, self.among, self.sizes[1]) * self.width
            total = self._totals(one, two, lanes)
            parts.append(total * (self.factor[n] if self.weighted else self.factor[0]))
        return torch.cat(parts)

    def _totals(self, one: Tensor, two: Tensor, lanes: int) -> Tensor:
        """Sums of squared differences: lanes over the rows of a patch, then the lanes, in one fixed order."""
        lane = torch.arange(lanes, device=one.device)
        return totals_on(one)(self.a, self.b, one[:, None] + lane, two[:, None] + lane, self.steps())

    def steps(self) -> list[list[int]]:
        """From a patch's first value to that of each of its rows, in a and in b."""
        return [
            [
                (t * size[1] + h) * size[2] * self.width
                for t in range(self.patch[0])
                for h in range(self.patch[1])
            ]
            for size in self.sizes
        ]


def totals(a: Tensor, b: Tensor, one: Tensor, two: Tensor, steps: list[list[int]]) -> Tensor:
    """Rows of patches, differences squared and added up row by row, then across."""
    sums = torch.zeros(
        one.shape, dtype=a.dtype if a.dtype == torch.float64 else torch.float32, device=a.device
    )
    for left, right in zip(*steps, strict=True):
        apart = a[one + left].to(sums.dtype) - b[two + right].to(sums.dtype)
        sums = sums + apart * apart
    return across(sums)


def across(sums: Float[Tensor, "n lanes"]) -> Float[Tensor, "n"]:
    """Sums over the lanes in four chains, that a processor need not wait; spare lanes go to the first."""
    whole = sums.shape[1] // 4 * 4
    chains = [torch.zeros_like(sums[:, 0]) for _ in range(4)]
    for lane in range(sums.shape[1]):
        chain = lane % 4 if lane < whole else 0
        chains[chain] = chains[chain] + sums[:, lane]
    return (chains[0] + chains[1]) + (chains[2] + chains[3])


def totals_on(where: Tensor):
    """`totals`, fused by torch.compile on a GPU. That path has not been run: no GPU was at hand."""
    if where.device.type != "cuda":
        return totals
    if "totals" not in _FUSED:
        _FUSED["totals"] = torch.compile(totals, dynamic=True)
    return _FUSED["totals"]


_FUSED = {}


def flat_rows(patches: Patches) -> Float[Tensor, "n"]:
    """The video with channels last, as one row of numbers; float64 stays, else float32, on a GPU float16.

    Half the memory and traffic there; differences and sums are float32 (not run yet: no GPU was at hand).
    """
    x = patches.image.detach().movedim(0, -1)
    small = torch.float16 if x.device.type == "cuda" else torch.float32
    return x.to(torch.float64 if x.dtype == torch.float64 else small).contiguous().flatten()


def coordinates(number: Tensor, grid: tuple[int, ...]) -> list[Tensor]:
    return [number // (grid[1] * grid[2]), number // grid[2] % grid[1], number % grid[2]]


def numbered(place: list[Tensor], grid: tuple[int, ...]) -> Tensor:
    return (place[0] * grid[1] + place[1]) * grid[2] + place[2]


def _origin(number: Tensor, grid: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Number of a patch's first voxel."""
    return numbered(coordinates(number, grid), size)
