"""Where the frames of a batch come from: pixels of the stores, pixels from a cache, or latents from a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unified_video_action.dataset.augmentation import VideoAugmentation
from unified_video_action.dataset.cache import CachedRows, cache_path, fill_cache
from unified_video_action.dataset.latents import LatentCache, StoredLatents, read_latents
from unified_video_action.dataset.sampling import sample_seed, uniform
from unified_video_action.dataset.tables import Table
from unified_video_action.vae.base import FrameCodec

VIEW, PIXELS, POSTERIOR = range(3)  # streams of random numbers drawn from a sample's seed


class PixelReader:
    """uint8 frames (B, T, 3, H, W), decoded from the stores or, if there are any, read from caches, and augmented."""

    def __init__(
        self,
        tables: Sequence[Table],
        augmentation: VideoAugmentation | None = None,
        caches: Mapping[str, Mapping[str, CachedRows]] | None = None,  # store's location -> camera -> frames
    ) -> None:
        self.tables, self.augmentation, self.caches = tables, augmentation, caches

    @classmethod
    def cached(
        cls, tables: Sequence[Table], augmentation: VideoAugmentation | None, folder: str | Path | None, progress: bool
    ) -> PixelReader:
        """Open the caches of decoded frames of all stores, first decoding what they lack."""
        caches: dict[str, dict[str, CachedRows]] = {}
        for location, (table, *_) in _by_store(tables).items():
            caches[location] = {camera: _cached_frames(table, camera, folder, progress) for camera in table.cameras}
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
        """Open the latent caches of all stores, first encoding what they lack on the device where `codec` is.

        Args:
            n_views: the frames as they are and n_views - 1 augmented views of each episode.
            folder: for the caches; None: beside each store (see `cache_path`).
            rebuild: delete caches and encode everything again.
        """
        views = view_names(n_views, augmentation)
        caches: dict[str, dict[str, LatentCache]] = {}
        for location, own in _by_store(tables).items():
            store, caches[location] = own[0].store, {}
            variants = {_variant(table, view): (table, number) for table in own for number, view in enumerate(views)}
            for camera in own[0].cameras:

                def frames(variant: str, start: int, stop: int) -> np.ndarray:
                    return _view(*variants[variant], camera, augmentation, np.arange(start, stop))  # noqa: B023

                path = cache_path(location, f"{camera}.{codec.name}_{codec.image_size}.latents", folder)
                caches[location][camera] = LatentCache.build(
                    path, codec, len(store), frames, store.fingerprint(), list(variants), rebuild, progress
                )
        return cls(tables, caches, views)

    def plain(self) -> LatentReader:
        """The same without augmentation."""
        return LatentReader(self.tables, self.caches)

    def read(self, tables: np.ndarray, rows: np.ndarray, seeds: np.ndarray) -> dict[str, StoredLatents]:
        """Latents at `rows` (B, T) of tables number `tables` (B,): camera -> (B, T, ...)."""
        drawn = (uniform(seeds, VIEW) * len(self.views)).astype(int)
        own, noise = [self.tables[n] for n in tables], sample_seed(seeds, POSTERIOR)
        variants = [_variant(table, self.views[view]) for table, view in zip(own, drawn, strict=True)]
        videos = {}
        for camera in self.tables[0].cameras:
            parts = [(self.caches[t.store.location][camera], name) for t, name in zip(own, variants, strict=True)]
            videos[camera] = read_latents(parts, rows, noise)  # (B, T, C, h, w)
        return videos


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


def _by_store(tables: Sequence[Table]) -> dict[str, list[Table]]:
    groups: dict[str, list[Table]] = {}
    for table in tables:
        groups.setdefault(table.store.location, []).append(table)
    return groups


def _cached_frames(table: Table, camera: str, folder: str | Path | None, progress: bool) -> CachedRows:
    def frames(_: str, start: int, stop: int) -> dict[str, np.ndarray]:
        return {"frames": table.stored_frames(camera, np.arange(start, stop))}

    store = table.store
    layout = {"plain": {"frames": ((3, *store.frame_shape(table.cameras[camera])), "uint8")}}
    path, key = cache_path(store.location, f"{camera}.frames", folder), {"source": store.fingerprint()}
    return fill_cache(path, key, len(table), layout, frames, progress=progress)["plain"]["frames"]


def _view(table: Table, view: int, camera: str, augmentation: VideoAugmentation | None, rows: np.ndarray) -> np.ndarray:
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
