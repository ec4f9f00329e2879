"""Windows of a Horizon over episodes: which rows of a store a sample reads, and which of them are padding.

A window is named by its row `now`. Rows beyond the episode's ends repeat its first or last row.
"""

from __future__ import annotations

import numpy as np

from unified_video_action.dataset.sampling import uniform
from unified_video_action.spec import Horizon


def reach(horizon: Horizon, history_actions: bool = False) -> tuple[int, int]:
    """Rows that a window covers before and after `now`, for example (15, 16).

    With the default horizon that is the 32-step window of the paper's code, whose row 15 is `now` and whose frames are
    rows 3, 7, 11, 15 and 19, 23, 27, 31; with history actions it is the 33-step one, whose row 16 is `now`.
    """
    before = horizon.history * horizon.stride - 1
    if history_actions:
        before = max(before, horizon.actions, -horizon.history_action_offsets[0])
    after = max(horizon.future * horizon.stride, horizon.action_offsets[-1])
    return before, after


def window_rows(
    horizon: Horizon,
    starts: np.ndarray,
    ends: np.ndarray,
    pad_before: int,
    pad_after: int,
    history_actions: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """All windows over episodes [start, end).

    Args:
        starts, ends: (E,) first row of each episode and the row after its last.
        pad_before, pad_after: steps by which a window may reach over an episode's start and end. At most what `reach`
            returns, at which every step of an episode is `now` once; 1 and 7 are the paper's.

    Returns:
        episode: (W,) position in `starts` of each window's episode.
        now: (W,) row of its newest observed frame.
    """
    before, after = reach(horizon, history_actions)
    for name, pad, most in (("pad_before", pad_before, before), ("pad_after", pad_after, after)):
        if not 0 <= pad <= most:
            raise ValueError(f"{name}={pad}: expected 0 to {most}, so that `now` stays inside the episode")
    first = np.asarray(starts, np.int64) + before - pad_before
    last = np.asarray(ends, np.int64) - 1 - after + pad_after
    counts = np.maximum(last - first + 1, 0)
    episode = np.repeat(np.arange(len(counts)), counts)  # (W,)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # (W,) window within its episode
    return episode, first[episode] + place


def clamp_rows(
    now: np.ndarray, start: np.ndarray, end: np.ndarray, offsets: np.ndarray | tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows at `offsets` from `now`, repeated at the episode's edges, and where they are such repeats.

    Args:
        now, start, end: (B,) window and its episode [start, end).
        offsets: (n,) the same for all windows, or (B, n).

    Returns:
        rows (B, n) int64 and is_pad (B, n) bool, True beyond the episode's ends.
    """
    rows = now[:, None] + np.asarray(offsets, np.int64)  # (B, n)
    start, end = start[:, None], end[:, None]
    return np.clip(rows, start, end - 1), (rows < start) | (rows >= end)


def random_history(horizon: Horizon, seeds: np.ndarray) -> np.ndarray:
    """History offsets (B, H) at random times: `now`, and before it a sorted multiset from the last H * stride steps.

    All multisets are equally likely (816 of them by default), as with the paper code's `different_history_freq`.
    """
    steps, earlier = horizon.history * horizon.stride, horizon.history - 1
    order = uniform(seeds[:, None], np.arange(steps + earlier - 1)).argsort(axis=1)  # (B, steps + earlier - 1)
    drawn = np.sort(order[:, :earlier], axis=1) - np.arange(earlier)  # (B, H - 1); a set of places makes a multiset
    return np.column_stack([drawn, np.full(len(seeds), steps - 1)]) - (steps - 1)


def split_episodes(
    n_episodes: int, val_ratio: float, seed: int, max_train_episodes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Episode numbers (training, held out), sorted; the draw equals the paper code's for the same seed.

    Raises:
        ValueError: a ratio outside [0, 1), or no episode left to train on.
    """
    if not 0 <= val_ratio < 1:
        raise ValueError(f"val_ratio={val_ratio}: expected 0 <= val_ratio < 1")
    if max_train_episodes is not None and max_train_episodes < 1:
        raise ValueError(f"max_train_episodes={max_train_episodes}: expected a positive number or null")
    held = np.zeros(n_episodes, bool)
    if val_ratio > 0:
        count = min(max(1, round(n_episodes * val_ratio)), n_episodes - 1)
        held[np.random.default_rng(seed).choice(n_episodes, size=count, replace=False)] = True
    train = np.flatnonzero(~held)
    if max_train_episodes is not None and len(train) > max_train_episodes:
        chosen = np.random.default_rng(seed).choice(len(train), size=max_train_episodes, replace=False)
        train = np.sort(train[chosen])
    return train, np.flatnonzero(held)
