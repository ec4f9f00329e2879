"""Samples of a Horizon from recorded episodes: the map-style dataset that every source builds on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unified_video_action.dataset.augmentation import VideoAugmentation
from unified_video_action.dataset.frame_readers import (
    FrameReader,
    LatentReader,
    PixelReader,
    build_frames,
    build_latents,
)
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.dataset.sampling import sample_seed
from unified_video_action.dataset.sequence import clamp_rows, random_history, split_episodes, window_rows
from unified_video_action.dataset.stored_latents import StoredLatents
from unified_video_action.dataset.tables import Table, repeats
from unified_video_action.spec import Horizon
from unified_video_action.vae.base import FrameCodec

log = logging.getLogger(__name__)

HISTORY = 100  # stream of random numbers drawn from a sample's seed; the frame readers have others


@dataclass(frozen=True)
class WindowOptions:
    """Which windows are cut, and what is drawn at random."""

    horizon: Horizon = field(default_factory=Horizon)
    pad_before: int = 1  # steps by which a window may reach over its episode's start
    pad_after: int = 7  # and over its end
    low_dim_steps: int | None = None  # newest states given; None: one for each history frame
    history_actions: bool = False  # samples carry the chunk before now
    future_low_dim: bool = False  # samples carry the states at the steps of the actions
    history_frequency: str = "fixed"  # "random": history frames at random times before now
    augmentation: VideoAugmentation | None = None

    def __post_init__(self) -> None:
        if self.history_frequency not in ("fixed", "random"):
            raise ValueError(f"history_frequency={self.history_frequency!r}: expected 'fixed' or 'random'")
        if self.low_dim_steps is not None and not 1 <= self.low_dim_steps <= self.horizon.history:
            raise ValueError(f"low_dim_steps={self.low_dim_steps}: expected 1 to {self.horizon.history}, or null")


class WindowDataset(Dataset):
    """`dataset[(index, seed)]` is the sample of a window; `__getitems__` makes the collated batch of several.

    A sample has `history` and `future` (camera -> uint8 (T, 3, H, W), or scaled latents float32 (T, C, h, w)),
    `action` (A, D), `low_dim` (name -> (P, d)), where asked for `history_action` (A, D) and `auxiliary` (H+F, K), the
    masks `action_is_pad` (A,), `frame_is_pad` (F,) and `has_action` (), and its `index` and `seed`. Values are in the
    data's units. Where asked for it also has `future_low_dim` (name -> (A, d)), and of sources with instructions `text`
    (text_dim,), the feature that `use_text` was given. Every random choice is a function of the seed.

    Args:
        tables: sources; those of one store share its split into training and held-out episodes.
        action_dim: D.
        val_ratio: share of each store's episodes that is held out.
        split_seed: of that draw.
        max_train_episodes: most episodes of each store to train on; None: all.
        raw_dims: field ("action" or a state) -> dimensions that the normaliser leaves as they are.

    Raises:
        ValueError: tables that do not fit together, or no episode that is long enough.
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
    ) -> None:
        self.raw_dims = dict(raw_dims or {})
        self.tables, self.action_dim, self.options = tuple(tables), action_dim, options
        for camera in tables[0].cameras:
            sizes = {table.store.location: table.store.frame_shape(table.cameras[camera]) for table in tables}
            if len(set(sizes.values())) > 1:
                raise ValueError(f"camera {camera}: frames of different sizes cannot share a batch: {sizes}")
        self._splits = [
            split_episodes(table.store.n_episodes, val_ratio, split_seed, max_train_episodes) for table in tables
        ]
        self._first = np.cumsum([0, *map(len, tables[:-1])])  # where each table begins in the stacked numbers
        none = [np.zeros((len(table), action_dim)) if table.action is None else table.action for table in tables]
        self._has_action = np.array([table.action is not None for table in tables])
        self._action = _stack(none)
        self._low_dim = {name: _stack([table.low_dim[name] for table in tables]) for name in tables[0].low_dim}
        with_text = {table.instructions is not None for table in tables}
        if len(with_text) > 1:
            raise ValueError("some sources have instructions and others have none: give every source a task string")
        self._instructions = tuple(sorted({text for table in tables for text in table.instructions or ()}))
        self._text: Tensor | None = None  # (instructions, text_dim)
        self._auxiliary = None if tables[0].auxiliary is None else _stack([table.auxiliary for table in tables])
        self._reader: FrameReader = PixelReader(self.tables, options.augmentation)
        self._cut([train for train, _ in self._splits])

    # -- windows -------------------------------------------------------------------------------------------------------

    def _cut(self, episodes: Sequence[np.ndarray]) -> None:
        """List the windows of these episodes of each table, those of weighted sources several times."""
        options, parts = self.options, []
        for number, (table, chosen) in enumerate(zip(self.tables, episodes, strict=True)):
            starts = self._first[number] + table.store.episode_starts[chosen]
            ends = self._first[number] + table.store.episode_ends[chosen]
            episode, now = window_rows(
                options.horizon, starts, ends, options.pad_before, options.pad_after, options.history_actions
            )
            parts.append(np.stack([np.full(len(now), number), now, starts[episode], ends[episode]]))  # (4, W)
        times = repeats([part.shape[1] for part in parts], [table.weight for table in self.tables])
        parts = [
            part[:, np.floor(np.arange(round(count * part.shape[1])) / count).astype(int)]
            for part, count in zip(parts, times, strict=True)
        ]
        self._table, self._now, self._start, self._end = np.concatenate(parts, axis=1)  # (W,) each
        if not len(self._now):
            places = ", ".join(table.store.location for table in self.tables)
            raise ValueError(f"{places}: no episode is long enough for a window of {options.horizon}")

    def validation(self) -> WindowDataset:
        """The held-out episodes: not mirrored, weighted or augmented, history at its fixed times; same caches.

        Raises:
            ValueError: nothing is held out (val_ratio is 0).
        """
        held_out = [
            held if table.mirror is None else held[:0]
            for table, (_, held) in zip(self.tables, self._splits, strict=True)
        ]
        if not any(map(len, held_out)):
            raise ValueError("val_ratio=0: no episode is held out for validation")
        dataset = copy.copy(self)
        dataset.tables = tuple(replace(table, weight=None) for table in self.tables)
        dataset.options = replace(self.options, augmentation=None, history_frequency="fixed")
        dataset._reader = self._reader.plain()
        dataset._cut(held_out)
        return dataset

    def __len__(self) -> int:
        return len(self._now)

    def describe(self, index: int) -> str:
        """Where a window comes from: file, episode, step; for messages."""
        number = self._table[index]
        store, mirror = self.tables[number].store, self.tables[number].mirror
        episode, step = store.locate(int(self._now[index] - self._first[number]))
        return f"{store.location}, episode {episode}, step {step}" + (", mirrored" if mirror else "")

    @property
    def auxiliary_dim(self) -> int:
        """K; 0 without auxiliary targets."""
        return 0 if self._auxiliary is None else self._auxiliary.shape[1]

    def frame_shapes(self) -> dict[str, tuple[int, int]]:
        """camera -> (H, W) of the stored frames."""
        table = self.tables[0]
        return {camera: table.store.frame_shape(name) for camera, name in table.cameras.items()}

    def low_dim_dims(self) -> dict[str, int]:
        """name -> d."""
        return {name: values.shape[1] for name, values in self._low_dim.items()}

    # -- caches --------------------------------------------------------------------------------------------------------

    def latents(
        self,
        codec: FrameCodec,
        folder: str | Path | None = None,
        n_views: int = 1,
        rebuild: bool = False,
        progress: bool = True,
    ) -> LatentReader:
        """Open the latent caches of this dataset's stores for `use_latents`, first building them where needed."""
        return build_latents(self.tables, codec, n_views, self.options.augmentation, folder, rebuild, progress)

    def use_latents(self, cache: LatentReader) -> None:
        """From now on samples hold latents."""
        self._reader = cache

    def use_frames(self, folder: str | Path | None = None, cached: bool = False, progress: bool = True) -> None:
        """From now on samples hold frames: decoded from the stores, or (`cached`) from a cache that is built once."""
        if cached:
            self._reader = build_frames(self.tables, self.options.augmentation, folder, progress=progress)
        else:
            self._reader = PixelReader(self.tables, self.options.augmentation)

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
        options, horizon = self.options, self.options.horizon
        history_rows, _ = clamp_rows(now, start, end, self._history_offsets(seeds))  # (B, H)
        future_rows, frame_is_pad = clamp_rows(now, start, end, horizon.future_offsets)  # (B, F)
        action_rows, action_is_pad = clamp_rows(now, start, end, horizon.action_offsets)  # (B, A)
        frame_rows = np.concatenate([history_rows, future_rows], axis=1)  # (B, H + F)
        videos = self._reader.read(table, frame_rows - self._first[table][:, None], seeds)
        state_rows = history_rows[:, -(options.low_dim_steps or horizon.history) :]  # (B, P)
        has_action = self._has_action[table]
        batch: dict[str, Any] = {
            "history": {camera: video[:, : horizon.history] for camera, video in videos.items()},
            "future": {camera: video[:, horizon.history :] for camera, video in videos.items()},
            "action": torch.from_numpy(self._action[action_rows]),  # (B, A, D)
            "low_dim": {name: torch.from_numpy(values[state_rows]) for name, values in self._low_dim.items()},
            "action_is_pad": torch.from_numpy(action_is_pad | ~has_action[:, None]),
            "frame_is_pad": torch.from_numpy(frame_is_pad),
            "has_action": torch.from_numpy(has_action),
            "index": torch.from_numpy(index),
            "seed": torch.from_numpy(seeds),
        }
        if options.history_actions:
            past_rows, _ = clamp_rows(now, start, end, horizon.history_action_offsets)  # (B, A)
            batch["history_action"] = torch.from_numpy(self._action[past_rows])  # (B, A, D)
        if options.future_low_dim:
            batch["future_low_dim"] = {name: torch.from_numpy(v[action_rows]) for name, v in self._low_dim.items()}
        if self._text is not None:
            batch["text"] = self._text[torch.from_numpy(self._instruction_numbers(table, now))]  # (B, text_dim)
        if self._auxiliary is not None:
            batch["auxiliary"] = torch.from_numpy(self._auxiliary[frame_rows])  # (B, H + F, K)
        return batch

    def _history_offsets(self, seeds: np.ndarray) -> np.ndarray:
        if self.options.history_frequency == "fixed":
            return np.array(self.options.horizon.history_offsets)  # (H,)
        return random_history(self.options.horizon, sample_seed(seeds, HISTORY))  # (B, H)

    # -- instructions --------------------------------------------------------------------------------------------------

    @property
    def instructions(self) -> tuple[str, ...]:
        """Every instruction that occurs, in alphabetical order; empty for a task without language."""
        return self._instructions

    def use_text(self, features: Tensor) -> None:
        """From now on samples carry `text`: features (instructions, text_dim), in the order of `instructions`."""
        if len(features) != len(self._instructions):
            raise ValueError(f"{len(features)} features for {len(self._instructions)} instructions")
        self._text = features.float().cpu()

    def _instruction_numbers(self, tables: np.ndarray, now: np.ndarray) -> np.ndarray:
        """Places in `instructions` (B,) of the episodes that rows `now` of `tables` belong to."""
        numbers = np.empty(len(now), np.int64)
        for number in np.unique(tables):
            mine = tables == number
            own = self.tables[number]
            episodes = np.searchsorted(own.store.episode_ends, now[mine] - self._first[number], side="right")
            numbers[mine] = [self._instructions.index(own.instructions[episode]) for episode in episodes]
        return numbers

    # -- normalisation -------------------------------------------------------------------------------------------------

    def fit_normalizer(self, relative_to: str | None = None) -> Normalizer:
        """Limits of actions and states over all episodes, the held-out ones included (as the paper's code does).

        Args:
            relative_to: low-dim name that the policy's actions are relative to (its newest value), or None. Relative
                actions have long tails: they are normalised by their deviation.
        """
        chunks = [self._all_actions(number, relative_to) for number in np.flatnonzero(self._has_action)]
        if not chunks:
            log.info("no source has actions: they are left as they are by the normaliser")
            actions = Normalizer.identity({"action": self.action_dim})
        else:
            fit = Normalizer.limits if relative_to is None else Normalizer.deviations
            actions = fit({"action": np.concatenate(chunks)})
        fields = {**actions.fields(), **Normalizer.limits(self._low_dim).fields()}
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
            raise ValueError(
                f"relative_to={relative_to!r}: the data has {', '.join(table.low_dim) or 'no low-dim values'}"
            )
        offsets = horizon.action_offsets
        if self.options.history_actions:
            offsets = horizon.history_action_offsets + offsets
        now, store = np.arange(len(table)), table.store
        episode = np.searchsorted(store.episode_ends, now, side="right")
        rows, is_pad = clamp_rows(now, store.episode_starts[episode], store.episode_ends[episode], offsets)  # (N, A)
        return (table.action[rows] - table.low_dim[relative_to][:, None])[~is_pad]


def _stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.float32)


def _first_row(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch[0]
    return {name: _first_row(value) for name, value in batch.items()}
