"""Latents of every frame of a store: computed once by the frozen codec, and scaled on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unified_video_action.dataset.cache import Layout, Stores, array_path, fill_cache
from unified_video_action.noise import randn
from unified_video_action.vae.base import FrameCodec, Moments

LOGVAR_FLOOR = -30.0  # a codec whose log-variances all lie here has no posterior to store

# (variant, start, stop) -> frames uint8 (stop - start, 3, H, W) of that variant
Frames = Callable[[str, int, int], np.ndarray]


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


class LatentCache:
    """Moments of all frames of one camera, in one or more variants (views) of the images, as float16 on disk.

    `LatentCache.build` makes or completes it and opens it. The object can be pickled into worker processes.
    """

    def __init__(self, stores: Stores, codec: FrameCodec) -> None:
        self.stores, first = stores, next(iter(stores.values()))
        self.scale, self.shift = codec.scale.cpu().clone(), codec.shift.cpu().clone()
        self.rows, self.shape = first["mean"].rows, first["mean"].row_shape  # N, (C, h, w)
        self.samples = codec.posterior == "sample" and "logvar" in first

    @classmethod
    def build(
        cls,
        path: str | Path,
        codec: FrameCodec,
        rows: int,
        frames: Frames,
        source: str,
        variants: Sequence[str] = ("plain",),
        rebuild: bool = False,
        progress: bool = True,
        block: int = 128,
    ) -> LatentCache:
        """Open the cache at `path`; encode what it lacks, on the device where `codec` is.

        Args:
            rows: number of frames.
            frames: gives the frames of a variant.
            source: fingerprint of the data.
            variants: those needed; more may be added later. A name says all that makes its frames differ.
            rebuild, progress, block: as for `fill_cache`.

        Raises:
            StaleCacheError: the cache there is of another codec, image size or source.
        """

        @lru_cache(maxsize=1)  # the first rows say whether there is a posterior to store; they are encoded once
        def encode(variant: str, start: int, stop: int) -> Moments:
            batch = torch.from_numpy(np.ascontiguousarray(frames(variant, start, stop)))[None].to(codec.scale.device)
            return codec.moments(batch)  # (1, n, C, h, w)

        def produce(variant: str, start: int, stop: int) -> dict[str, np.ndarray]:
            halves = {}
            for name in layout:
                values = getattr(encode(variant, start, stop), name)[0]  # (n, C, h, w)
                half = values.to(torch.float16).cpu()
                if not torch.isfinite(half).all():
                    largest = f"latents up to {values.abs().max():.3g}, which float16 cannot hold"
                    raise ValueError(f"{path}, rows {start} to {stop}: the codec gave {largest}")
                halves[name] = half.numpy()
            return halves

        path = Path(path)
        if array_path(path, variants[0], "mean").exists() and not rebuild:
            has_posterior = array_path(path, variants[0], "logvar").exists()
        else:
            has_posterior = bool(encode(variants[0], 0, min(block, rows)).logvar.max() > LOGVAR_FLOOR)
        cell = tuple(vars(codec.latent_shape).values()), "float16"
        layout: Layout = {"logvar": cell, "mean": cell} if has_posterior else {"mean": cell}  # made in this order
        key = {"codec": codec.key(), "image size": str(codec.image_size), "source": source}
        groups = {variant: layout for variant in variants}
        return cls(fill_cache(path, key, rows, groups, produce, rebuild, progress, block), codec)


def read_latents(parts: Sequence[tuple[LatentCache, str]], rows: np.ndarray, seeds: Sequence[int]) -> StoredLatents:
    """Latents (B, T, C, h, w), to be scaled.

    Args:
        parts: cache and variant of each sample; the caches are of one codec.
        rows: (B, T) int64.
        seeds: B seeds of the posterior's noise, used when the codec's posterior is "sample".
    """
    cache = parts[0][0]
    stores = [own.stores[variant] for own, variant in parts]
    latents = np.empty((*rows.shape, *cache.shape), np.float16)  # (B, T, C, h, w)
    for own, store, out in zip(rows, stores, latents, strict=True):
        store["mean"].read(own, out)
    if cache.samples:
        latents = latents.astype(np.float32)
        for own, store, seed, out in zip(rows, stores, seeds, latents, strict=True):
            deviation = torch.exp(0.5 * torch.from_numpy(store["logvar"].read(own)).float())
            sample, generator = torch.from_numpy(out), torch.Generator().manual_seed(int(seed))
            sample += deviation * randn(sample.shape, generator, sample)
    return StoredLatents(torch.from_numpy(latents), cache.shift, cache.scale)
