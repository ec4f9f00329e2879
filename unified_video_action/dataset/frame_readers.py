"""Where the frames of a batch come from: pixels of the stores, pixels from a cache, or latents from a cache.

Latents are computed once by the frozen codec for every frame of a store, kept as float16, and scaled on the device.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unified_video_action.dataset.augmentation import VideoAugmentation
from unified_video_action.dataset.cache import CachedRows, Layout, Stores, array_path, cache_path, fill_cache
from unified_video_action.dataset.sampling import sample_seed, uniform
from unified_video_action.dataset.tables import Table, stored_cameras
from unified_video_action.noise import randn
from unified_video_action.vae.base import FrameCodec, Moments

VIEW, PIXELS, POSTERIOR = range(3)  # streams of random numbers drawn from a sample's seed
LOGVAR_FLOOR = -30.0  # a codec whose log-variances all lie here has no posterior to store

# (variant, start, stop) -> frames uint8 (stop - start, 3, H, W) of that variant
Frames = Callable[[str, int, int], np.ndarray]


class PixelReader:
    """uint8 frames (B, T, 3, H, W), decoded from the stores or, if there are any, read from caches, and augmented."""

    def __init__(
        self,
        tables: Sequence[Table],
        augmentation: VideoAugmentation | None = None,
        caches: Mapping[tuple[str, str], CachedRows] | None = None,  # store's location, camera there -> frames
    ) -> None:
        self.tables, self.augmentation, self.caches = tables, augmentation, caches

    @classmethod
    def cached(
        cls, tables: Sequence[Table], augmentation: VideoAugmentation | None, folder: str | Path | None, progress: bool
    ) -> PixelReader:
        """Open the caches of decoded frames of all stores, first decoding what they lack."""
        caches = {
            stored: _cached_frames(*shown[0], name, folder, progress) for stored, name, shown in stored_cameras(tables)
        }
        return cls(tables, augmentation, caches)

    def plain(self) -> PixelReader:
        """The same without augmentation."""
        return PixelReader(self.tables, None, self.caches)

    def read(self, tables: np.ndarray, rows: np.ndarray, seeds: np.ndarray) -> dict[str, Tensor]:
        """Frames at `rows` (B, T) of tables number `tables` (B,): camera -> (B, T, ...)."""
        videos = {}
        for camera in self.tables[0].cameras:
            samples = zip(tables, rows, seeds, strict=True)
            clips = [self._clip(self.tables[n], camera, own, int(seed)) for n, own, seed in samples]
            videos[camera] = torch.from_numpy(np.stack(clips))  # (B, T, 3, H, W)
        return videos

    def _clip(self, table: Table, camera: str, rows: np.ndarray, seed: int) -> np.ndarray:
        if self.caches is None:
            frames = table.stored_frames(camera, rows)
        else:
            frames = self.caches[table.stored(camera)].read(rows)
        frames = table.mirrored(frames)
        if self.augmentation is None:
            return frames
        return self.augmentation(frames, np.random.default_rng(sample_seed(seed, PIXELS)))


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


class LatentReader:
    """Latents (B, T, C, h, w) from caches, to be scaled; a sample's seed picks one of the views.

    Args:
        caches: store's location, camera there -> variant -> moments of all frames.
        views: names of the views to draw from, "" being the frames as they are.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        caches: Mapping[tuple[str, str], Stores],
        codec: FrameCodec,
        views: Sequence[str] = ("",),
    ) -> None:
        self.tables, self.caches, self.views = tables, caches, tuple(views)
        self.scale, self.shift = codec.scale.cpu().clone(), codec.shift.cpu().clone()
        self.samples = codec.posterior == "sample"

    @classmethod
    def build(
        cls,
        tables: Sequence[Table],
        codec: FrameCodec,
        n_views: int = 1,
        augmentation: VideoAugmentation | None = None,
        folder: str | Path | None = None,
        rebuild: bool = False,
        progress: bool = True,
    ) -> LatentReader:
        """Open the latent caches of all stores in `folder` (see `cache_path`), first encoding what they lack.

        Args:
            n_views: the frames as they are and n_views - 1 augmented views of each episode.
        """
        views = view_names(n_views, augmentation)
        caches: dict[tuple[str, str], Stores] = {}
        for stored, name, shown in stored_cameras(tables):
            store = shown[0][0].store
            variants = {_variant(own[0], view): (*own, number) for own in shown for number, view in enumerate(views)}

            def frames(variant: str, start: int, stop: int) -> np.ndarray:
                return _view(*variants[variant], augmentation, np.arange(start, stop))  # noqa: B023

            path = cache_path(store.location, f"{name}.{codec.name}_{codec.image_size}.latents", folder)
            caches[stored] = fill_latents(
                path, codec, len(store), frames, store.fingerprint(), list(variants), rebuild, progress
            )
        return cls(tables, caches, codec, views)

    def plain(self) -> LatentReader:
        """The same without augmentation."""
        reader = copy.copy(self)
        reader.views = ("",)
        return reader

    def read(self, tables: np.ndarray, rows: np.ndarray, seeds: np.ndarray) -> dict[str, StoredLatents]:
        """Latents at `rows` (B, T) of tables number `tables` (B,): camera -> (B, T, ...)."""
        drawn = (uniform(seeds, VIEW) * len(self.views)).astype(int)
        own, noise = [self.tables[n] for n in tables], sample_seed(seeds, POSTERIOR) if self.samples else None
        variants = [_variant(table, self.views[view]) for table, view in zip(own, drawn, strict=True)]
        videos = {}
        for number, camera in enumerate(self.tables[0].cameras):
            its_noise = sample_seed(noise, number) if self.samples and number else noise
            parts = [self.caches[table.stored(camera)][name] for table, name in zip(own, variants, strict=True)]
            videos[camera] = StoredLatents(read_latents(parts, rows, its_noise), self.shift, self.scale)
        return videos


def fill_latents(
    path: Path,
    codec: FrameCodec,
    rows: int,
    frames: Frames,
    source: str,
    variants: Sequence[str],
    rebuild: bool = False,
    progress: bool = True,
    block: int = 128,
) -> Stores:
    """Open the cache of one camera's latents; encode what it lacks, on the device where `codec` is.

    Args:
        rows: number of frames. source: fingerprint of the data. rebuild, progress, block: as for `fill_cache`.
        variants: of the frames, those needed; more may be added later. A name says all that makes its frames differ.

    Returns:
        variant -> "mean" and, where the codec has a posterior, "logvar": float16 (rows, C, h, w).

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

    if array_path(path, variants[0], "mean").exists() and not rebuild:
        has_posterior = array_path(path, variants[0], "logvar").exists()
    else:
        has_posterior = bool(encode(variants[0], 0, min(block, rows)).logvar.max() > LOGVAR_FLOOR)
    cell = tuple(vars(codec.latent_shape).values()), "float16"
    layout: Layout = {"logvar": cell, "mean": cell} if has_posterior else {"mean": cell}  # made in this order
    key = {"codec": codec.key(), "image size": str(codec.image_size), "source": source}
    groups = {variant: layout for variant in variants}
    return fill_cache(path, key, rows, groups, produce, rebuild, progress, block)


def read_latents(stores: Sequence[Mapping[str, CachedRows]], rows: np.ndarray, seeds: Sequence[int] | None) -> Tensor:
    """Latents (B, T, C, h, w), not scaled, at `rows` (B, T) of B arrays: means, in float16.

    With `seeds` (B,) they are samples of the posterior, where there is one, in float32.
    """
    latents = np.empty((*rows.shape, *stores[0]["mean"].row_shape), np.float16)  # (B, T, C, h, w)
    for own, store, out in zip(rows, stores, latents, strict=True):
        store["mean"].read(own, out)
    if seeds is not None and "logvar" in stores[0]:
        latents = latents.astype(np.float32)
        for own, store, seed, out in zip(rows, stores, seeds, latents, strict=True):
            deviation = torch.exp(0.5 * torch.from_numpy(store["logvar"].read(own)).float())
            sample, generator = torch.from_numpy(out), torch.Generator().manual_seed(int(seed))
            sample += deviation * randn(sample.shape, generator, sample)
    return torch.from_numpy(latents)


def view_names(n_views: int, augmentation: VideoAugmentation | None) -> list[str]:
    """Names of the frames as they are and n_views - 1 augmented views; a name tells views of other recipes apart."""
    if (n_views > 1) != (augmentation is not None):
        raise ValueError(
            f"data.n_views={n_views}: latents need 2 views or more with augmentation (the first is not augmented), "
            "and 1 without"
        )
    if augmentation is None:
        return [""]
    recipe = hashlib.sha256(json.dumps(asdict(augmentation)).encode()).hexdigest()[:8]
    return ["", *(f"_{recipe}_{view}" for view in range(1, n_views))]


def _variant(table: Table, view: str) -> str:
    return ("plain" if table.mirror is None else "mirrored") + view


def _cached_frames(table: Table, camera: str, name: str, folder: str | Path | None, progress: bool) -> CachedRows:
    def frames(_: str, start: int, stop: int) -> dict[str, np.ndarray]:
        return {"frames": table.stored_frames(camera, np.arange(start, stop))}

    store = table.store
    layout = {"plain": {"frames": ((3, *store.frame_shape(table.cameras[camera])), "uint8")}}
    path, key = cache_path(store.location, f"{name}.frames", folder), {"source": store.fingerprint()}
    return fill_cache(path, key, len(table), layout, frames, progress=progress)["plain"]["frames"]


def _view(table: Table, camera: str, view: int, augmentation: VideoAugmentation | None, rows: np.ndarray) -> np.ndarray:
    """Frames uint8 (n, 3, H, W) of one view; all frames of an episode are augmented alike."""
    frames = table.mirrored(table.stored_frames(camera, rows))
    if view == 0:
        return frames
    episodes = np.searchsorted(table.store.episode_ends, rows, side="right")
    parts = [
        augmentation(frames[episodes == episode], np.random.default_rng(sample_seed(view, int(episode))))
        for episode in np.unique(episodes)
    ]
    return np.concatenate(parts)
