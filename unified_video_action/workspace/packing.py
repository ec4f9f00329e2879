"""Nested tensors as one block of memory.

What a loader process hands over then costs one shared block, one pinning and one copy to the device, not dozens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from unified_video_action.dataset.latents import StoredLatents

ALIGNMENT = 64  # bytes


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the block."""

    start: int  # byte
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Packed:
    """A structure of mappings, sequences and dataclasses whose tensors lie in one block."""

    block: Tensor  # (bytes,) uint8
    structure: Any  # with a Place for each tensor

    def pin_memory(self) -> Packed:
        return replace(self, block=self.block.pin_memory())

    def to(self, device: torch.device | str) -> Packed:
        """The same on `device`; from pinned memory the copy goes on while the host does."""
        return replace(self, block=self.block.to(device, non_blocking=True))

    def clone(self) -> Packed:
        """The same in memory of its own."""
        return replace(self, block=self.block.clone())

    def unpack(self, device: torch.device | str = "cpu") -> Any:
        """The structure with its tensors, which share the block's memory on `device`; stored latents are scaled."""
        block = self.to(device).block

        def view(place: Place) -> Tensor:
            return block[place.start : place.start + place.bytes].view(place.dtype).reshape(place.shape)

        return scale_latents(map_leaves(self.structure, Place, view))


def _own_block(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


def pack(structure: Any, new_block: Callable[[int], Tensor] = _own_block) -> Packed:
    """Copy all tensors of a structure, which are on the CPU, into one block; `new_block` makes it, given its bytes."""
    tensors: list[Tensor] = []
    places: list[Place] = []

    def place(tensor: Tensor) -> Place:
        end = places[-1].start + places[-1].bytes if places else 0
        tensors.append(tensor)
        places.append(Place(-(-end // ALIGNMENT) * ALIGNMENT, tensor.dtype, tuple(tensor.shape)))
        return places[-1]

    placed = map_leaves(structure, Tensor, place)
    block = new_block(places[-1].start + places[-1].bytes if places else 0)
    for tensor, target in zip(tensors, Packed(block, places).unpack(), strict=True):
        target.copy_(tensor)
    return Packed(block, placed)


def scale_latents(structure: Any) -> Any:
    """The structure with float32 tensors in place of stored latents."""
    return map_leaves(structure, StoredLatents, StoredLatents.scaled)


def map_leaves(item: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Apply a function to everything of type `kind` in nested mappings, sequences and dataclasses."""
    if isinstance(item, kind):
        return function(item)
    if isinstance(item, Mapping):
        return {key: map_leaves(value, kind, function) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return type(item)(map_leaves(value, kind, function) for value in item)
    if is_dataclass(item):
        changed = {part.name: map_leaves(getattr(item, part.name), kind, function) for part in fields(item)}
        return replace(item, **changed)
    return item
