"""The data of a training step as a function of its number."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from unified_video_action.dataset.frame_readers import StoredLatents
from unified_video_action.dataset.sampling import StepBatchSampler
from unified_video_action.dataset.store import StoreError
from unified_video_action.policy.base import BasePolicy, Share
from unified_video_action.workspace.process import leave_signals_to_parent
from unified_video_action.workspace.settings import TrainingSettings

Key = tuple[int, int]  # (window index, sample seed)
PREFETCH = 4  # steps that each worker prepares ahead


@dataclass(frozen=True)
class MicroBatch:
    """Samples that pass through the device together."""

    batch: dict[str, Any]  # collated samples, prepared by the policy
    weights: dict[str, float]  # of each loss term
    seed: int  # for whatever else is random, such as dropout

    def pin_memory(self) -> MicroBatch:
        return map_leaves(self, Tensor, Tensor.pin_memory)

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same on `device`, where stored latents are scaled; from pinned memory the host need not wait."""
        moved = map_leaves(self, Tensor, lambda tensor: tensor.to(device, non_blocking=True))
        return map_leaves(moved, StoredLatents, StoredLatents.scaled)


class StepBatches(Dataset):
    """What one process computes in each step: a list of micro-batches.

    Samples and everything random in them depend on (seed, step) alone. Processes take contiguous slices of the global
    batch and cut them into micro-batches whose sizes differ by one at most.

    Args:
        dataset: `dataset.__getitems__([(index, seed), ...])` is a collated batch. If it has a method `stored`, that is
            called in its place: its latents are unscaled, and scaled on the device.
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
        self.dataset, self.policy = dataset, policy
        self.batch_size, self.seed, self.rank, self.world = training.batch_size, seed, rank, world
        self.share = self.batch_size // world
        self.parts = 1 if micro_batch is None else -(-self.share // micro_batch)

    def loader(
        self, first: int, last: int, workers: int = 0, pin: bool = False
    ) -> Generator[list[MicroBatch], None, None]:
        """Lists of micro-batches for steps first .. last-1, prepared by `workers` processes (0: this one).

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
                worker_init_fn=leave_signals_to_parent,
                generator=torch.Generator(),  # else the loader would draw from the global one
            )
        )
        try:
            for made in prepared:
                if isinstance(made, StoreError):
                    raise made
                yield made
        finally:
            del prepared  # ends the workers, also when an error keeps this frame alive

    def __getitem__(self, numbered: tuple[int, list[Key]]) -> list[MicroBatch] | StoreError:
        """A step; from a worker also what is wrong with its data, which torch would wrap in the worker's traceback."""
        step, keys = numbered
        bounds = [self.share * part // self.parts for part in range(self.parts + 1)]
        try:
            return [self._micro_batch(step, self.rank * self.share + a, keys[a:b]) for a, b in pairwise(bounds)]
        except StoreError as error:
            if get_worker_info() is None:
                raise
            return StoreError(str(error))

    def first(self) -> MicroBatch:
        """The first micro-batch of the run."""
        (keys,) = self._keys(0, 1, self.rank, self.world)
        return self[0, keys][0]

    def whole(self, step: int) -> list[Key]:
        """(index, seed) of all samples of a step, those of other processes too."""
        (keys,) = self._keys(step, step + 1)
        return keys

    def loss_terms(self) -> tuple[str, ...]:
        """Names of the losses that the policy can have, in an order that all processes share."""
        held_out = self.policy.validation_batches(self.dataset.__getitems__(self.whole(0)[:1]))
        return tuple(sorted({name for batch in held_out.values() for name in self.policy.loss_weights(batch)}))

    def describe(self, step: int) -> str:
        """A line for each sample of a step: where it is from, its task mode, and its values that are not finite."""
        lines = []
        for position, (index, seed) in enumerate(self.whole(step)):
            sample = self.dataset.__getitems__([(index, seed)])
            prepared = self.policy.prepare(sample, Share(step, position, self.batch_size, self.seed))
            mode = "".join(f", mode {name}" for name in prepared.get("task_mode", ()))
            bad = ", ".join(sorted(name for name, value in _floats(sample) if not torch.isfinite(value).all()))
            fault = f"  <- not finite: {bad}" if bad else ""
            lines.append(f"  index {index}, seed {seed}{mode}: {self.dataset.describe(index)}{fault}")
        return "\n".join(lines)

    def _keys(self, first: int, last: int, rank: int = 0, world: int = 1) -> StepBatchSampler:
        return StepBatchSampler(len(self.dataset), self.batch_size, self.seed, first, last, rank, world)

    def _micro_batch(self, step: int, first: int, keys: list[Key]) -> MicroBatch:
        batch = getattr(self.dataset, "stored", self.dataset.__getitems__)(keys)
        batch = self.policy.prepare(batch, Share(step, first, self.batch_size, self.seed))
        return MicroBatch(batch, self.policy.loss_weights(batch), keys[0][1])


def map_leaves(item: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Apply a function to everything of type `kind` in nested mappings, lists and dataclasses."""
    if isinstance(item, kind):
        return function(item)
    if isinstance(item, Mapping):
        return {key: map_leaves(value, kind, function) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return type(item)(map_leaves(value, kind, function) for value in item)
    if is_dataclass(item):
        return replace(item, **{f.name: map_leaves(getattr(item, f.name), kind, function) for f in fields(item)})
    return item


def _floats(sample: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(sample, Mapping):
        for key, value in sample.items():
            yield from _floats(value, f"{name}.{key}" if name else str(key))
    elif isinstance(sample, Tensor) and sample.is_floating_point():
        yield name, sample
