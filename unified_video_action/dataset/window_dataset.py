"""Samples of a Horizon from recorded episodes: the map-style dataset that every source builds on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from unified_video_action.dataset.augmentation import VideoAugmentation
from unified_video_action.dataset.cache_folder import cache_path
from unified_video_action.dataset.frame_cache import FrameCache
from unified_video_action.dataset.latent_cache import LatentCache
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.dataset.replay_buffer import ReplayBuffer
from unified_video_action.dataset.sampling import sample_seed, uniform
from unified_video_action.dataset.sequence import clamp_rows, random_history, split_episodes, window_rows
from unified_video_action.spec import Horizon
from unified_video_action.vae.base import FrameCodec

log = logging.getLogger(__name__)

VIEW, PIXELS, HISTORY, POSTERIOR = range(4)  # streams of random numbers that a sample's seed gives
MIRROR_FRAMES = Callable[[np.ndarray], np.ndarray]  # (..., 3, H, W) -> the same shape


@dataclass(frozen=True)
class Table:
    """A store as a dataset sees it: numbers in memory, frames on disk. Its mirror image is a second table."""

    store: ReplayBuffer
    cameras: Mapping[str, str]  # camera -> image array of the store
    low_dim: Mapping[str, np.ndarray]  # name -> (N, d)
    action: np.ndarray | None = None  # (N, D); None: a video without actions
    auxiliary: np.ndarray | None = None  # (N, K) regression targets, about [-1, 1]
    weight: float | None = None  # share of the samples that its store gets; None: by its number of windows
    mirror: MIRROR_FRAMES | None = None  # turns stored frames into this table's

    def __len__(self) -> int:
        return len(self.store)


@dataclass(frozen=True)
class WindowOptions:
    """Which windows are cut and what is drawn at random; see `WindowDataset`."""

    horizon: Horizon = field(default_factory=Horizon)
    pad_before: int = 1  # steps by which a window may reach over an episode's start
    pad_after: int = 7  # and over its end
    low_dim_steps: int | None = None  # newest states given; None: one at each history frame
    history_actions: bool = False  # samples carry the chunk before now
    history_frequency: str = "fixed"  # "random": history frames at random times before now
    augmentation: VideoAugmentation | None = None

    def __post_init__(self) -> None:
        if self.history_frequency not in ("fixed", "random"):
            raise ValueError(f"history_frequency={self.history_frequency!r}: expected 'fixed' or 'random'")
        if self.low_dim_steps is not None and not 1 <= self.low_dim_steps <= self.horizon.history:
            raise ValueError(
                f"low_dim_steps={self.low_dim_steps}: expected 1 to {self.horizon.history} (history frames), or null"
            )


class WindowDataset(Dataset):
    """`dataset[(index, seed)]` is the sample of a window; `__getitems__` makes a collated batch of several at once.

    A sample has `history` and `future` (camera -> uint8 (T, 3, H, W), or scaled latents float32 (T, C, h, w)),
    `action` (A, D), `low_dim` (name -> (P, d)), where present `history_action` (A, D) and `auxiliary` (H+F, K), the masks
    `action_is_pad` (A,), `frame_is_pad` (F,), `has_action` (), and its `index` and `seed`. Values are in the data's
    units. Every random choice is a function of the seed.

    Args:
        tables: sources; tables of one store share its split into training and held-out episodes.
        val_ratio: share of each store's episodes that is held out.
        split_seed: of that draw.
        max_train_episodes: most episodes of each store to train on; None: all.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        options: WindowOptions,
        val_ratio: float,
        split_seed: int,
        max_train_episodes: int | None = None,
    ) -> None:
        self.tables, self.options, self.horizon = tuple(tables), options, options.horizon
        if len({table.store.frame_shape(name) for table in tables for name in table.cameras.values()}) > 1:
            sizes = [f"{table.store.location}: {table.store.frame_shape(n)}" for table in tables for n in table.cameras.values()]
            raise ValueError("frames of different sizes cannot share a batch: " + ", ".join(sizes))
        self._splits = [
            split_episodes(table.store.n_episodes, val_ratio, split_seed, max_train_episodes) for table in tables
        ]
        self._first = np.cumsum([0, *map(len, tables[:-1])])  # each table's first row in the stacked numbers
        width = next((table.action.shape[1] for table in tables if table.action is not None), None)
        self._action = None if width is None else _stack(
            [np.zeros((len(table), width)) if table.action is None else table.action for table in tables]
        )
        self._low_dim = {name: _stack([table.low_dim[name] for table in tables]) for name in tables[0].low_dim}
        self._auxiliary = None if tables[0].auxiliary is None else _stack([table.auxiliary for table in tables])
        self._caches: list[dict[str, LatentCache]] | list[dict[str, FrameCache]] | None = None
        self._views = 1
        self._cut([train for train, _ in self._splits], weighted=True)

    # -- which windows ---------------------------------------------------------------------------------------------

    def _cut(self, episodes: Sequence[np.ndarray], weighted: bool) -> None:
        """List the windows of these episodes of each table."""
        columns = []
        for number, (table, chosen, first) in enumerate(zip(self.tables, episodes, self._first, strict=True)):
            starts, ends = first + table.store.episode_starts[chosen], first + table.store.episode_ends[chosen]
            options = self.options
            episode, now = window_rows(
                self.horizon, starts, ends, options.pad_before, options.pad_after, options.history_actions
            )
            columns.append(np.stack([np.full(len(now), number), now, starts[episode], ends[episode]]))  # (4, W)
        if weighted:
            columns = _repeat_by_weight(columns, self.tables)
        self._table, self._now, self._start, self._end = np.concatenate(columns, axis=1)  # (W,) each
        if not len(self._now):
            raise ValueError(f"{self.tables[0].store.location}: no episode is long enough for a window of {self.horizon}")

    def validation(self) -> WindowDataset:
        """The held-out episodes: not mirrored, not augmented, history at its fixed times; same caches.

        Raises:
            ValueError: nothing is held out (val_ratio is 0).
        """
        held_out = [held if table.mirror is None else held[:0] for table, (_, held) in zip(self.tables, self._splits)]
        if not any(map(len, held_out)):
            raise ValueError("val_ratio=0: no episode is held out for validation")
        dataset = copy.copy(self)
        dataset.options = copy.replace(self.options, augmentation=None, history_frequency="fixed")
        dataset._views = 1
        dataset._cut(held_out, weighted=False)
        return dataset

    def __len__(self) -> int:
        return len(self._now)

    def describe(self, index: int) -> str:
        """Where a window comes from: file, episode, step; for messages."""
        table = self.tables[self._table[index]]
        episode, step = table.store.locate(int(self._now[index] - self._first[self._table[index]]))
        return f"{table.store.location}, episode {episode}, step {step}" + (", mirrored" if table.mirror else "")

    # -- samples ---------------------------------------------------------------------------------------------------

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        return _first_row(self.__getitems__([item]))

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The collated batch of windows `items`, each (index, seed)."""
        index, seeds = np.array(items, np.int64).T
        table, now, start, end = (column[index] for column in (self._table, self._now, self._start, self._end))
        options, horizon = self.options, self.horizon
        history_rows, _ = clamp_rows(now, start, end, self._history_offsets(seeds))  # (B, H)
        future_rows, frame_is_pad = clamp_rows(now, start, end, horizon.future_offsets)  # (B, F)
        action_rows, action_is_pad = clamp_rows(now, start, end, horizon.action_offsets)  # (B, A)
        has_action = np.array([self.tables[number].action is not None for number in table])
        frame_rows = np.concatenate([history_rows, future_rows], axis=1)  # (B, H + F)
        frames = self._frames(table, frame_rows - self._first[table][:, None], seeds)
        batch: dict[str, Any] = {
            "history": {name: video[:, : horizon.history] for name, video in frames.items()},
            "future": {name: video[:, horizon.history :] for name, video in frames.items()},
            "low_dim": {
                name: torch.from_numpy(values[history_rows[:, -(options.low_dim_steps or horizon.history) :]])
                for name, values in self._low_dim.items()
            },
            "frame_is_pad": torch.from_numpy(frame_is_pad),
            "action_is_pad": torch.from_numpy(action_is_pad | ~has_action[:, None]),
            "has_action": torch.from_numpy(has_action),
            "index": torch.from_numpy(index),
            "seed": torch.from_numpy(seeds),
        }
        batch["action"] = torch.from_numpy(self._action[action_rows])  # (B, A, D)
        if options.history_actions:
            past_rows, _ = clamp_rows(now, start, end, horizon.history_action_offsets)
            batch["history_action"] = torch.from_numpy(self._action[past_rows])  # (B, A, D)
        if self._auxiliary is not None:
            batch["auxiliary"] = torch.from_numpy(self._auxiliary[frame_rows])  # (B, H + F, K)
        return batch
