"""Samples of a Horizon from recorded episodes: the map-style dataset that every source builds on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unified_video_action.dataset.frame_readers import LatentReader, LatentStatistics, PixelReader, StoredLatents
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.dataset.sequence import WindowOptions, clamp_rows, split_episodes, window_rows
from unified_video_action.dataset.tables import Recordings, Table, repeats
from unified_video_action.vae.base import FrameCodec

log = logging.getLogger(__name__)

NORMALIZERS = {"limits": Normalizer.limits, "deviations": Normalizer.deviations, "none": None}
ROWS_FITTED = 50_000  # at most so many windows decide how transformed states and actions are normalised


class WindowDataset(Dataset):
    """`dataset[(index, seed)]` is the sample of a window; `__getitems__` makes the collated batch of several.

    A sample has `history` and `future` (camera -> uint8 (T, 3, H, W), or scaled latents float32 (T, C, h, w)), `action`
    (A, D), `low_dim` (name -> (P, d)), the masks `action_is_pad` (A,), `frame_is_pad` (F,), `has_action`, `has_low_dim`
    and `has_auxiliary` (), its `index` and `seed`; where a source has them `executed_action` (A, D) and `text`
    (text_dim,), as `use_text` was given; where asked for `history_action` (A, D), `auxiliary` (H+F, K) and
    `future_low_dim` (name -> (A, d)). Values are in the data's units, as the options' transforms leave them; what a
    source lacks is zero. Every random choice is a function of the seed.

    Tables of one store share its split into training and held-out episodes; the other arguments are `MixtureDataset`'s.
    `instructions` are all that occur, in alphabetical order, none for a task without language.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        action_dim: int,
        options: WindowOptions,
        val_ratio: float = 0.02,
        split_seed: int = 42,
        max_train_episodes: int | None = None,
        raw_dims: Mapping[str, Sequence[int]] | None = None,
        normalizer: str = "limits",
    ) -> None:
        if normalizer not in NORMALIZERS:
            raise ValueError(f"normalizer={normalizer!r}: expected one of {', '.join(NORMALIZERS)}")
        self.raw_dims, self.normalizer, self._training = dict(raw_dims or {}), normalizer, True
        self.tables, self.action_dim, self.options = tuple(tables), action_dim, options
        for camera in tables[0].cameras:
            sizes = {table.store.location: table.store.frame_shape(table.cameras[camera]) for table in tables}
            if len(set(sizes.values())) > 1:
                raise ValueError(f"camera {camera}: frames of different sizes cannot share a batch: {sizes}")
        if len({table.instructions is None for table in tables}) > 1:
            raise ValueError("some sources have instructions and others have none: give every source a task string")
        ratios = [val_ratio if table.val_ratio is None else table.val_ratio for table in tables]
        self._splits = [
            split_episodes(table.store.n_episodes, ratio, split_seed, max_train_episodes)
            for table, ratio in zip(tables, ratios, strict=True)
        ]
        self._recorded = Recordings(tables, action_dim, options)
        self.instructions = tuple(sorted({text for table in tables for text in table.instructions or ()}))
        self._spoken = np.concatenate([_spoken(table, self.instructions) for table in tables])  # (N,)
        self._text: Tensor | None = None  # (instructions, text_dim)
        self._reader: PixelReader | LatentReader = PixelReader(self.tables, options.augmentation)
        self._cut([train for train, _ in self._splits])

    # -- windows -------------------------------------------------------------------------------------------------------

    def _cut(self, episodes: Sequence[np.ndarray]) -> None:
        """List the windows of these episodes of each table, those of weighted sources several times."""
        parts = []
        for number, (table, chosen) in enumerate(zip(self.tables, episodes, strict=True)):
            starts = self._recorded.first[number] + table.store.episode_starts[chosen]
            ends = self._recorded.first[number] + table.store.episode_ends[chosen]
            episode, now = window_rows(self.options, starts, ends)
            parts.append(np.stack([np.full(len(now), number), now, starts[episode], ends[episode]]))  # (4, W)
        times = repeats([part.shape[1] for part in parts], [table.weight for table in self.tables])
        parts = [
            part[:, np.floor(np.arange(round(count * part.shape[1])) / count).astype(int)]
            for part, count in zip(parts, times, strict=True)
        ]
        self._table, self._now, self._start, self._end = np.concatenate(parts, axis=1)  # (W,) each
        if not len(self._now):
            stores = ", ".join(table.store.location for table in self.tables)
            raise ValueError(f"{stores}: no episode is long enough for a window of {self.options.horizon}")

    def validation(self) -> WindowDataset:
        """The held-out episodes: not mirrored, weighted, augmented or noisy, history at fixed times; same caches."""
        splits = zip(self.tables, self._splits, strict=True)
        held_out = [held if table.mirror is None else held[:0] for table, (_, held) in splits]
        if not any(map(len, held_out)):
            raise ValueError("val_ratio=0: no episode is held out for validation")
        return self._plain(held_out)

    def everything(self) -> WindowDataset:
        """All episodes, as `validation` shows the held-out ones: for data that nothing is trained on."""
        return self._plain([np.arange(table.store.n_episodes) for table in self.tables])

    def _plain(self, episodes: Sequence[np.ndarray]) -> WindowDataset:
        dataset = copy.copy(self)
        dataset.tables = tuple(replace(table, weight=None) for table in self.tables)
        dataset.options = replace(self.options, augmentation=None, history_frequency="fixed")
        dataset._reader, dataset._training = self._reader.plain(), False
        dataset._cut(episodes)
        return dataset

    def __len__(self) -> int:
        return len(self._now)

    def episodes(self) -> np.ndarray:
        """(W,) a number for each window that only windows of its episode share."""
        return np.unique(np.stack([self._table, self._start]), axis=1, return_inverse=True)[1].reshape(-1)

    def low_dim_dims(self) -> dict[str, int]:
        """name -> d."""
        return {name: values.shape[-1] for name, values in self._recorded.sample(1)[1].history.items()}

    def shapes(self) -> dict[str, tuple[int, ...] | int]:
        """Shapes of what the sources have, by the names of a task's shape_meta."""
        table, auxiliary = self.tables[0], self._recorded.auxiliary
        found = {f"obs.{camera}": (3, *table.store.frame_shape(name)) for camera, name in table.cameras.items()}
        found |= {f"obs.{name}": (width,) for name, width in self.low_dim_dims().items()}
        return found | {"action": (self.action_dim,), "auxiliary_dim": 0 if auxiliary is None else auxiliary.shape[1]}

    # -- caches and instructions ---------------------------------------------------------------------------------------

    def latents(
        self,
        codec: FrameCodec,
        folder: str | Path | None = None,
        n_views: int = 1,
        rebuild: bool = False,
        progress: bool = True,
    ) -> LatentReader:
        """Open the latent caches of this dataset's stores for `use_latents`, first building them where needed."""
        return LatentReader.build(self.tables, codec, n_views, self.options.augmentation, folder, rebuild, progress)

    def use_latents(self, cache: LatentReader) -> None:
        """From now on samples hold latents."""
        self._reader = cache

    def use_frames(self, folder: str | Path | None = None, cached: bool = False, progress: bool = True) -> None:
        """From now on samples hold frames: decoded from the stores, or (`cached`) from a cache that is built once."""
        augmentation = self.options.augmentation
        if cached:
            self._reader = PixelReader.cached(self.tables, augmentation, folder, progress)
        else:
            self._reader = PixelReader(self.tables, augmentation)

    def use_text(self, features: Tensor) -> None:
        """From now on samples carry `text`: features (instructions, text_dim), in the order of `instructions`."""
        assert len(features) == len(self.instructions)
        self._text = features.float().cpu()

    # -- samples -------------------------------------------------------------------------------------------------------

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        return _first_row(self.__getitems__([item]))

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The collated batch of windows `items`, each (index, seed)."""
        batch = self.stored(items)
        for part in ("history", "future"):
            batch[part] = {
                camera: video.scaled() if isinstance(video, StoredLatents) else video
                for camera, video in batch[part].items()
            }
        return batch

    def stored(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The same, but latents are `StoredLatents`: whoever uses them scales them, on the device."""
        index, seeds = np.array(items, np.int64).T.copy()  # (B,) each
        table, now, start, end = (column[index] for column in (self._table, self._now, self._start, self._end))
        horizon, step = self.options.horizon, self.options.down_sample
        history_offsets = self.options.history_offsets(seeds)
        history_rows, _ = clamp_rows(now, start, end, step * history_offsets)  # (B, H)
        future_rows, frame_is_pad = clamp_rows(now, start, end, step * np.array(horizon.future_offsets, np.int64))
        frame_rows = np.concatenate([history_rows, future_rows], axis=1)  # (B, H + F)
        videos = self._reader.read(table, frame_rows - self._recorded.first[table][:, None], seeds)
        states = self._recorded.states(now, start, end, seeds, history_offsets, self._training)
        has_action = self._recorded.has_action[table]
        batch: dict[str, Any] = {
            "history": {camera: video[:, : horizon.history] for camera, video in videos.items()},
            "future": {camera: video[:, horizon.history :] for camera, video in videos.items()},
            "action": torch.from_numpy(states.action),  # (B, A, D)
            "low_dim": _tensors(states.history),
            "action_is_pad": torch.from_numpy(states.action_is_pad | ~has_action[:, None]),
            "frame_is_pad": torch.from_numpy(frame_is_pad),
            "has_action": torch.from_numpy(has_action),
            "has_low_dim": torch.from_numpy(self._recorded.has_low_dim[table]),
            "has_auxiliary": torch.from_numpy(self._recorded.has_auxiliary[table]),
            "index": torch.from_numpy(index),
            "seed": torch.from_numpy(seeds),
        }
        if states.executed is not None:
            batch["executed_action"] = torch.from_numpy(states.executed)  # (B, A, D)
        if states.history_action is not None:
            batch["history_action"] = torch.from_numpy(states.history_action)  # (B, A, D)
        if asked := self.options.future_low_dim:
            names = states.future if asked is True else asked
            batch["future_low_dim"] = _tensors({name: states.future[name] for name in names})
        if self._text is not None:
            batch["text"] = self._text[self._spoken[now]]  # (B, text_dim)
        if (auxiliary := self._recorded.auxiliary) is not None:
            batch["auxiliary"] = torch.from_numpy(auxiliary[frame_rows])  # (B, H + F, K)
        return batch

    # -- statistics ----------------------------------------------------------------------------------------------------

    def measure_latents(self, windows: int = 512) -> dict[str, LatentStatistics]:
        """How large the latents of each camera are, and their changes, over windows spread evenly over the samples."""
        if not isinstance(self._reader, LatentReader):
            raise ValueError("latents are measured where there are some: data.frames=latents")
        batch = self.__getitems__([(index, index) for index in range(0, len(self), max(1, len(self) // windows))])
        return {
            camera: LatentStatistics.of(history, batch["future"][camera])
            for camera, history in batch["history"].items()
        }

    def fit_normalizer(self, relative_to: str | None = None) -> Normalizer:
        """Limits of actions and states over all episodes, the held-out ones included (as the paper's code does).

        Args:
            relative_to: low-dim name that the policy's actions are relative to (its newest value), or None. Relative
                actions have long tails: they are normalised by their deviation.
        """
        if relative_to is not None and self.options.transforms:
            raise ValueError(f"relative_to={relative_to!r}: the data's transforms make actions relative already")
        fit = NORMALIZERS[self.normalizer]
        if fit is None:
            return Normalizer.identity({"action": self.action_dim, **self.low_dim_dims()})
        if self.options.transforms:
            table, states = self._recorded.sample(ROWS_FITTED)
            low_dim = {name: values[self._recorded.has_low_dim[table]] for name, values in states.history.items()}
            chunks = [states.action[~states.action_is_pad & self._recorded.has_action[table][:, None]]]  # (n, D)
        else:
            known = np.repeat(self._recorded.has_low_dim, [len(table) for table in self.tables])  # (N,)
            low_dim = {name: values[known] for name, values in self._recorded.low_dim.items()}
            chunks = [self._all_actions(number, relative_to) for number in np.flatnonzero(self._recorded.has_action)]
        if not sum(map(len, chunks)):
            log.info("no source has actions: they are left as they are by the normaliser")
            actions = Normalizer.identity({"action": self.action_dim})
        else:
            fit_actions = fit if relative_to is None else Normalizer.deviations
            actions = fit_actions({"action": np.concatenate(chunks)})
        fields = {**actions.fields(), **fit(low_dim).fields()}
        for name, dims in self.raw_dims.items():
            if name not in fields or not all(0 <= dim < len(fields[name]["scale"]) for dim in dims):
                raise ValueError(f"raw_dims.{name}={list(dims)}: the data has {', '.join(fields)}; dimensions from 0")
            fields[name]["scale"][list(dims)] = 1.0
            fields[name]["offset"][list(dims)] = 0.0
        return Normalizer(fields)

    def _all_actions(self, number: int, relative_to: str | None) -> np.ndarray:
        """(n, D) actions of a table; relative ones once for every chunk that they belong to."""
        table, horizon = self.tables[number], self.options.horizon
        if relative_to is None:
            return table.action
        if relative_to not in table.low_dim:
            there = ", ".join(table.low_dim) or "no low-dim values"
            raise ValueError(f"relative_to={relative_to!r}: the data has {there}")
        offsets = horizon.action_offsets
        if self.options.history_actions:
            offsets = horizon.history_action_offsets + offsets
        now, store = np.arange(len(table)), table.store
        episode = np.searchsorted(store.episode_ends, now, side="right")
        offsets = self.options.down_sample * np.array(offsets)
        rows, is_pad = clamp_rows(now, store.episode_starts[episode], store.episode_ends[episode], offsets)  # (N, A)
        return (table.action[rows] - table.low_dim[relative_to][:, None])[~is_pad]


def _spoken(table: Table, instructions: Sequence[str]) -> np.ndarray:
    """Index into `instructions` of each row (N,); empty for a table without instructions."""
    index_of = {text: index for index, text in enumerate(instructions)}
    spoken = np.array([index_of[text] for text in table.instructions or ()], np.int64)
    if len(spoken) == table.store.n_episodes:
        spoken = np.repeat(spoken, np.diff(table.store.episode_ends, prepend=0))
    return spoken


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def _first_row(batch: Any) -> Any:
    return batch[0] if isinstance(batch, Tensor) else {name: _first_row(value) for name, value in batch.items()}
