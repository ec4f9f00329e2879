"""Which windows make up which training step, as a pure function of (seed, step).

Nothing here keeps state: the same numbers come out for any number of processes or loader workers, and after a resume.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)  # of SplitMix64, as are the two multipliers below
_MASK = (1 << 64) - 1


def hash64(*values: int | np.ndarray) -> np.ndarray:
    """Well mixed uint64 for a tuple of integers; arrays broadcast and are hashed elementwise."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        for value in values:
            state = _mix(state + _INCREMENT) ^ _as_uint64(value)
            state = _mix(state + _INCREMENT)
    return state if any(isinstance(value, np.ndarray) for value in values) else state[0]


def sample_seed(seed: int | np.ndarray, counter: int | np.ndarray) -> np.ndarray:
    """The 63-bit key (int64, >= 0) from which every random choice of one sample is derived."""
    return (hash64(seed, counter) >> np.uint64(1)).astype(np.int64)


def uniform(seeds: np.ndarray, stream: int | np.ndarray) -> np.ndarray:
    """One float64 in [0, 1) for each seed; another `stream` number gives an independent draw. Arrays broadcast."""
    return (hash64(np.asarray(seeds), stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class StepBatchSampler(Sampler[list[tuple[int, int]]]):
    """Lists of (window index, sample seed), one list for each optimiser step in [start_step, stop_step).

    Global sample number g = step * global_batch + position; the window is permutation(seed, g // n)[g % n] and the
    sample's seed a hash of (seed, g). A rank takes a contiguous slice of every global batch.

    Args:
        n: number of windows in the dataset.
        global_batch: samples of one optimiser step, over all `world` processes, which share it equally.
        seed: of the run, >= 0.
    """

    def __init__(
        self,
        n: int,
        global_batch: int,
        seed: int,
        start_step: int = 0,
        stop_step: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        assert n > 0 and 0 <= start_step <= stop_step and 0 <= rank < world and global_batch % world == 0
        if seed < 0:
            raise ValueError(f"seed={seed} must be >= 0")
        self.n, self.global_batch, self.seed = n, global_batch, seed
        self.start_step, self.stop_step = start_step, stop_step
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.stop_step - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.global_batch // self.world
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start_step, self.stop_step):
            first = step * self.global_batch + self.rank * share
            numbers = np.arange(first, first + share)
            epochs, offsets = np.divmod(numbers, self.n)
            indices = np.empty(share, np.int64)
            for wanted in np.unique(epochs):
                if wanted != epoch:
                    epoch, order = wanted, np.random.default_rng([self.seed, int(wanted)]).permutation(self.n)
                chosen = epochs == wanted
                indices[chosen] = order[offsets[chosen]]
            seeds = sample_seed(self.seed, numbers)
            yield list(zip(indices.tolist(), seeds.tolist(), strict=True))


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _as_uint64(value: int | np.ndarray) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value.astype(np.int64).view(np.uint64)
    return np.full(1, int(value) & _MASK, np.uint64)
