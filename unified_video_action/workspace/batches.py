"""The data of a training step as a function of its number."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from unified_video_action.dataset.sampling import StepBatchSampler
from unified_video_action.dataset.zarr_store import StoreError
from unified_video_action.model.task_modes import TASK_MODES, TaskMode
from unified_video_action.policy.base import BasePolicy
from unified_video_action.workspace.packing import Packed, pack, scale_latents
from unified_video_action.workspace.settings import TrainingSettings
from unified_video_action.workspace.signals import leave_signals_to_parent
from unified_video_action.workspace.worker_memory import SharedRing

Key = tuple[int, int]  # (window index, sample seed)
PREFETCH = 4  # steps that each worker prepares ahead
RING = PREFETCH + 2  # blocks of a worker: those of the steps ahead, the one being received, and one more


@dataclass(frozen=True)
class MicroBatch:
    """Samples that pass through the device together."""

    batch: dict[str, Any]  # collated samples
    draws: Any  # their masks and noise
    weights: dict[str, float]  # of each loss term
    seed: int  # for whatever else is random, such as dropout
    modes: frozenset[str]  # names of their task modes


class StepBatches(Dataset):
    """What one process computes in each step: a packed list of micro-batches.

    Samples, task modes and noise depend on (seed, step) alone. Processes take contiguous slices of the global batch and
    cut them into micro-batches whose sizes differ by one at most.

    Args:
        dataset: `dataset.__getitems__([(index, seed), ...])` is a collated batch. If it has a method `stored`, that is
            called in its place: its latents are unscaled, and scaled when the batch is unpacked on the device.
        policy: draws masks and noise.
        micro_batch: most samples of a micro-batch; None: no limit.
        rank, world: this process and the number of processes.

    Raises:
        ValueError: a batch that the processes cannot share equally.
    """

    def __init__(
        self,
        dataset: Dataset,
        policy: BasePolicy,
        training: TrainingSettings,
        seed: int,
        micro_batch: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if training.batch_size % world:
            raise ValueError(f"training.batch_size={training.batch_size} cannot be shared equally by {world} processes")
        self.dataset, self.policy, self.mode_mix = dataset, policy, training.mode_mix
        self.batch_size, self.seed, self.rank, self.world = training.batch_size, seed, rank, world
        self.share = self.batch_size // world
        self.task_modes = tuple(TASK_MODES[name] for name, share in self.mode_mix.quotas.items() if share > 0)
        self.ring: SharedRing | None = None  # in a worker
        self.parts = 1 if micro_batch is None else -(-self.share // micro_batch)

    @staticmethod
    def ahead(workers: int) -> int:
        """Steps that lie ready when a loader with so many workers has not been asked for a while."""
        return PREFETCH * workers

    def loader(self, first: int, last: int, workers: int = 0, pin: bool = False) -> Generator[Packed, None, None]:
        """Packed lists of micro-batches for steps first .. last-1, prepared by `workers` processes (0: this one).

        Close the generator when leaving it early: the workers end with it.

        Raises:
            StoreError: damaged data.
        """
        prepared = iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=enumerate(self._keys(first, last, self.rank, self.world), first),
                num_workers=workers,
                prefetch_factor=PREFETCH if workers else None,
                pin_memory=pin,
                worker_init_fn=_begin_work,
                generator=torch.Generator(),  # else the loader would draw from the global one
            )
        )
        borrowed = workers > 0 and not pin  # the worker will write over it
        seen = deque(maxlen=workers * RING)  # blocks that are held stay mapped; they come again and again
        try:
            for packed in prepared:
                if isinstance(packed, StoreError):
                    raise packed
                if borrowed:
                    seen.append(packed.block)
                yield packed.clone() if borrowed else packed
        finally:
            del prepared  # ends the workers, also when an error keeps this frame alive

    def __getitem__(self, numbered: tuple[int, list[Key]]) -> Packed | StoreError:
        """A step; from a worker also what is wrong with its data, which torch would wrap in the worker's traceback."""
        try:
            return self._packed(*numbered)
        except StoreError as error:
            if self.ring is None:
                raise
            return StoreError(str(error))

    def _packed(self, step: int, keys: list[Key]) -> Packed:
        modes = self._modes(step)[self.rank * self.share :][: self.share]
        bounds = [self.share * part // self.parts for part in range(self.parts + 1)]
        parts = [self._micro_batch(keys[first:end], modes[first:end]) for first, end in pairwise(bounds)]
        return pack(parts) if self.ring is None else pack(parts, self.ring.block)

    def whole(self, step: int) -> list[tuple[int, int, TaskMode]]:
        """(index, seed, mode) of all samples of a step, those of other processes too."""
        (keys,) = self._keys(step, step + 1, 0, 1)
        return [(index, seed, mode) for (index, seed), mode in zip(keys, self._modes(step), strict=True)]

    def loss_terms(self) -> tuple[str, ...]:
        """Names of the losses that this mix of modes can have, in an order that all processes share."""
        return tuple(sorted({name for mode in self.task_modes for name in self.sample(mode).weights}))

    def sample(self, mode: TaskMode) -> MicroBatch:
        """The first sample of the run, alone and in this mode."""
        (keys,) = self._keys(0, 1, 0, 1)
        return scale_latents(self._micro_batch(keys[:1], [mode]))

    def modes(self, step: int) -> frozenset[str]:
        """Names of the task modes in a step, over all processes."""
        return frozenset(mode.name for mode in self._modes(step))

    def _keys(self, first: int, last: int, rank: int, world: int) -> StepBatchSampler:
        return StepBatchSampler(len(self.dataset), self.batch_size, self.seed, first, last, rank, world)

    def _modes(self, step: int) -> list[TaskMode]:
        return self.mode_mix.modes(step, self.batch_size, self.seed)

    def _micro_batch(self, keys: list[Key], modes: list[TaskMode]) -> MicroBatch:
        batch = getattr(self.dataset, "stored", self.dataset.__getitems__)(keys)
        draws = self.policy.training_draws([seed for _, seed in keys], modes)
        weights = self.policy.loss_weights(batch, draws)
        return MicroBatch(batch, draws, weights, keys[0][1], frozenset(mode.name for mode in modes))


def _begin_work(worker: int) -> None:
    """Called in each worker, which has its own copy of the StepBatches."""
    leave_signals_to_parent()
    get_worker_info().dataset.ring = SharedRing(RING)
