"""Latents of every frame of a store, computed once by the frozen codec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unified_video_action.dataset.cache_folder import Layout, fill_cache
from unified_video_action.dataset.row_store import RowStore
from unified_video_action.dataset.stored_latents import StoredLatents
from unified_video_action.vae.base import FrameCodec, Moments, gaussian

LOGVAR_FLOOR = -30.0  # a codec whose log-variances all lie here has no posterior to store

# (variant, start, stop) -> frames uint8 (stop - start, 3, H, W) of that variant
Frames = Callable[[str, int, int], np.ndarray]


class LatentCache:
    """Moments of all frames of one camera, in one or more variants (views) of the images, as float16 on disk.

    `LatentCache.build` makes or completes it and opens it. The object can be pickled into worker processes.
    """

    def __init__(self, stores: dict[str, dict[str, RowStore]], codec: FrameCodec) -> None:
        self.variants = tuple(stores)
        self._stores = stores
        self._scale, self._shift = codec.scale.cpu().clone(), codec.shift.cpu().clone()
        self._samples = codec.posterior == "sample" and "logvar" in next(iter(stores.values()))

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
            ValueError: a latent that float16 cannot hold.
        """

        @lru_cache(maxsize=1)  # the first rows say whether there is a posterior to store; they are encoded once
        def encode(variant: str, start: int, stop: int) -> Moments:
            batch = torch.from_numpy(np.ascontiguousarray(frames(variant, start, stop)))[None].to(codec.scale.device)
            return codec.moments(batch)  # (1, n, C, h, w)

        def produce(variant: str, start: int, stop: int) -> dict[str, np.ndarray]:
            moments = encode(variant, start, stop)
            arrays = {"mean": moments.mean, "logvar": moments.logvar}
            return {name: _to_half(arrays[name], f"{path}, rows {start} to {stop}") for name in layout}

        path = Path(path)
        if (path / variants[0] / "mean").exists() and not rebuild:
            has_posterior = (path / variants[0] / "logvar").exists()
        else:
            has_posterior = bool(encode(variants[0], 0, min(block, rows)).logvar.max() > LOGVAR_FLOOR)
        cell = tuple(vars(codec.latent_shape).values()), "float16"
        layout: Layout = {"logvar": cell, "mean": cell} if has_posterior else {"mean": cell}  # made in this order
        key = {"codec": codec.key(), "image size": str(codec.image_size), "source": source}
        groups = {variant: layout for variant in variants}
        return cls(fill_cache(path, key, rows, groups, produce, rebuild, progress, block), codec)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent."""
        return self._stores[self.variants[0]]["mean"].row_shape

    def __len__(self) -> int:
        """Number of frames."""
        return self._stores[self.variants[0]]["mean"].rows

    def read(self, rows: np.ndarray, variants: Iterable[str], seeds: Sequence[int]) -> StoredLatents:
        """Latents (B, T, C, h, w), to be scaled.

        Args:
            rows: (B, T) int64.
            variants: B names, one for each sample.
            seeds: B seeds of the posterior's noise, used when the codec's posterior is "sample".
        """
        stores = [self._stores[variant] for variant in variants]
        latents = np.empty((*rows.shape, *self.shape), np.float16)  # (B, T, C, h, w)
        for own, store, out in zip(rows, stores, latents, strict=True):
            store["mean"].read(own, out)
        if self._samples:
            latents = self._noisy(latents, rows, stores, seeds)
        return StoredLatents(torch.from_numpy(latents), self._shift, self._scale)

    def _noisy(
        self, means: np.ndarray, rows: np.ndarray, stores: Sequence[dict[str, RowStore]], seeds: Sequence[int]
    ) -> np.ndarray:
        """float16 means -> float32 samples of the posterior, of the same shape."""
        latents = means.astype(np.float32)
        logvar = np.empty((rows.shape[1], *self.shape), np.float16)  # of one sample
        for own, store, seed, out in zip(rows, stores, seeds, latents, strict=True):
            store["logvar"].read(own, logvar)
            sample, generator = torch.from_numpy(out), torch.Generator().manual_seed(int(seed))
            sample += torch.exp(0.5 * torch.from_numpy(logvar).float()) * gaussian(sample[None], [generator])[0]
        return latents


def _to_half(values: Tensor, where: str) -> np.ndarray:
    """(1, n, ...) -> (n, ...) float16."""
    half = values[0].to(torch.float16).cpu()
    if not torch.isfinite(half).all():
        raise ValueError(f"{where}: the codec gave latents up to {values.abs().max():.3g}, which float16 cannot hold")
    return half.numpy()
