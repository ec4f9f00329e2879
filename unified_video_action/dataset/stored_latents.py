"""Latents on their way from the cache to the device, in half the bytes and not yet scaled; and how large they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class StoredLatents:
    """Latents as a cache holds them. Reading and sending them costs a third of what float32 would."""

    values: Tensor  # (B, T, C, h, w), float16 as stored, or float32 where the posterior's noise has been added
    shift: Tensor  # (C, 1, 1) float32
    scale: Tensor  # (C, 1, 1) float32

    def __getitem__(self, key: Any) -> StoredLatents:
        """A part of them; `key` concerns samples and time."""
        return replace(self, values=self.values[key])

    def scaled(self) -> Tensor:
        """`(values - shift) * scale`, float32 in memory of its own, on the device where the values are."""
        cell = self.values.shape[-3:]  # written out, a channel's value is not looked up for every few numbers
        shift, scale = (part.expand(cell).contiguous() for part in (self.shift, self.scale))
        return self.values.to(torch.float32, copy=True).sub_(shift).mul_(scale)


class LatentStatistics(NamedTuple):
    """Mean squares of one camera's latents."""

    level: float  # of all values; a codec that fits its pictures has about 1
    change: float  # from the newest frame to a later one, in the cells that change

    @classmethod
    def of(cls, history: Tensor, future: Tensor) -> LatentStatistics:
        """Of scaled latents (B, H, C, h, w) and (B, F, C, h, w)."""
        changes = (future - history[:, -1:]).square().mean(2)  # (B, F, h, w)
        change = changes.square().sum() / changes.sum().clamp(min=1e-12)  # of a cell, weighted by itself
        return cls(history.square().mean().item(), change.item())
