"""Where the frames of a batch come from: pixels of the stores, pixels from a cache, or latents from a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unified_video_action.dataset.augmentation import VideoAugmentation
from unified_video_action.dataset.cache import CachedRows, cache_path, fill_cache
from unified_video_action.dataset.latents import LatentCache, StoredLatents
from unified_video_action.dataset.sampling import sample_seed, uniform
from unified_video_action.dataset.tables import Table
from unified_video_action.vae.base import FrameCodec

VIEW, PIXELS, POSTERIOR = range(3)  # streams of random numbers drawn from a sample's seed


class FrameReader(Protocol):
    """Gives the frames of windows."""

    def read(self, tables: np.ndarray, rows: np.ndarray, seeds: np.ndarray) -> Mapping[str, Tensor | StoredLatents]:
        """Frames at `rows` (B, T) of tables number `tables` (B,): camera -> (B, T, ...)."""

    def plain(self) -> FrameReader:
        """The same without augmentation."""


class PixelReader:
    """uint8 frames (B, T, 3, H, W), decoded from the stores or read from caches, and augmented.

    Args:
        caches: store's location -> camera -> frames (3, H, W); None: decode.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        augmentation: VideoAugmentation | None = None,
        caches: Mapping[str, Mapping[str, CachedRows]] | None = None,
    ) -> None:
        self.tables, self.augmentation, self.caches = tables, augmentation, caches

    def plain(self) -> PixelReader:
        return PixelReader(self.tables, None, self.caches)

    def read(self, tables: np.ndarray, rows: np.ndarray, seeds: np.ndarray) -> dict[str, Tensor]:
        videos = {}
        for camera in self.tables[0].cameras:
            clips = [
                self._clip(self.tables[n], camera, own, int(s)) for n, own, s in zip(tables, rows, seeds, strict=True)
            ]
            videos[camera] = torch.from_numpy(np.stack(clips))  # (B, T, 3, H, W)
        return videos

    def _clip(self, table: Table, camera: str, rows: np.ndarray, seed: int) -> np.ndarray:
        if self.caches is None:
            frames = table.stored_frames(camera, rows)
        else:
            frames = self.caches[table.store.location][camera].read(rows)
        frames = table.mirrored(frames)
        if self.augmentation is None:
            return frames
        return self.augmentation(frames, np.random.default_rng(sample_seed(seed, PIXELS)))


class LatentReader:
    """Latents (B, T, C, h, w) from caches, to be scaled; a sample's seed picks one of the views.

    Args:
        caches: store's location -> camera -> cache.
        views: names of the views to draw from, "" being the frames as they are.
    """

    def __init__(
        self, tables: Sequence[Table], caches: Mapping[str, Mapping[str, LatentCache]], views: Sequence[str] = ("",)
    ) -> None:
        self.tables, self.caches, self.views = tables, caches, tuple(views)

    def plain(self) -> LatentReader:
        return LatentReader(self.tables, self.caches)

    def read(self, tables: np.ndarray, rows: np.ndarray, seeds: np.ndarray) -> dict[str, StoredLatents]:
        drawn = (uniform(seeds, VIEW) * len(self.views)).astype(int)
        variants = np.array([variant_name(self.tables[n], self.views[v]) for n, v in zip(tables, drawn, strict=True)])
        locations = np.array([self.tables[n].store.location for n in tables])
        noise = sample_seed(seeds, POSTERIOR)
        videos = {}
        for camera in self.tables[0].cameras:
            parts, order = [], []
            for location in np.unique(locations):
                mine = np.flatnonzero(locations == location)
                parts.append(self.caches[location][camera].read(rows[mine], variants[mine], noise[mine]))
                order.append(mine)
            video = parts[0]  # shift and scale are the codec's, the same for all stores
            if len(parts) > 1:
                values = torch.cat([part.values for part in parts])[np.argsort(np.concatenate(order))]
                video = replace(video, values=values)
            videos[camera] = video  # (B, T, C, h, w)
        return videos


def view_names(n_views: int, augmentation: VideoAugmentation | None) -> list[str]:
    """Names of the frames as they are and n_views - 1 augmented views; a name tells views of other recipes apart."""
    if n_views < 1 or (n_views > 1) != (augmentation is not None):
        raise ValueError(
            f"data.n_views={n_views}: latents need 2 views or more with augmentation (the first is not augmented), "
            "and 1 without"
        )
    if augmentation is None:
        return [""]
    recipe = hashlib.sha256(json.dumps(asdict(augmentation)).encode()).hexdigest()[:8]
    return ["", *(f"_{recipe}_{view}" for view in range(1, n_views))]


def variant_name(table: Table, view: str) -> str:
    return ("plain" if table.mirror is None else "mirrored") + view


def build_latents(
    tables: Sequence[Table],
    codec: FrameCodec,
    n_views: int = 1,
    augmentation: VideoAugmentation | None = None,
    folder: str | Path | None = None,
    rebuild: bool = False,
    progress: bool = True,
) -> LatentReader:
    """Open the latent caches of all stores, first encoding what they lack on the device where `codec` is.

    Args:
        n_views: the frames as they are and n_views - 1 augmented views of each episode.
        folder: for the caches; None: beside each store (see `cache_path`).
        rebuild: delete caches and encode everything anew.

    Raises:
        StaleCacheError: a cache of other codec weights, image size or data.
    """
    views = view_names(n_views, augmentation)
    caches: dict[str, dict[str, LatentCache]] = {}
    for location, own in _by_store(tables).items():
        store, caches[location] = own[0].store, {}
        variants = {variant_name(table, view): (table, number) for table in own for number, view in enumerate(views)}
        for camera in own[0].cameras:

            def frames(variant: str, start: int, stop: int) -> np.ndarray:
                return _variant(*variants[variant], camera, augmentation, np.arange(start, stop))  # noqa: B023

            path = cache_path(location, f"{camera}.{codec.name}_{codec.image_size}.latents", folder)
            caches[location][camera] = LatentCache.build(
                path, codec, len(store), frames, store.fingerprint(), list(variants), rebuild, progress
            )
    return LatentReader(tables, caches, views)


def build_frames(
    tables: Sequence[Table],
    augmentation: VideoAugmentation | None = None,
    folder: str | Path | None = None,
    rebuild: bool = False,
    progress: bool = True,
) -> PixelReader:
    """Open the caches of decoded frames of all stores, first decoding what they lack; arguments as above."""
    caches: dict[str, dict[str, CachedRows]] = {}
    for location, (table, *_) in _by_store(tables).items():
        caches[location] = {}
        for camera in table.cameras:

            def frames(_: str, start: int, stop: int) -> dict[str, np.ndarray]:
                return {"frames": table.stored_frames(camera, np.arange(start, stop))}  # noqa: B023

            layout = {"plain": {"frames": ((3, *table.store.frame_shape(table.cameras[camera])), "uint8")}}
            path, key = cache_path(location, f"{camera}.frames", folder), {"source": table.store.fingerprint()}
            stores = fill_cache(path, key, len(table), layout, frames, rebuild, progress)
            caches[location][camera] = stores["plain"]["frames"]
    return PixelReader(tables, augmentation, caches)


def _by_store(tables: Sequence[Table]) -> dict[str, list[Table]]:
    groups: dict[str, list[Table]] = {}
    for table in tables:
        groups.setdefault(table.store.location, []).append(table)
    return groups


def _variant(
    table: Table, view: int, camera: str, augmentation: VideoAugmentation | None, rows: np.ndarray
) -> np.ndarray:
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
