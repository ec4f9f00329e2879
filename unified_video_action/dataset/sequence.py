"""Windows of a Horizon over episodes: which rows of a store a sample reads, and which of them are padding.

A window is named by its row `now`. Rows beyond the episode's ends repeat its first or last row. A recording may be
faster than the control steps of a Horizon; then several rows make a step, and each of them may be `now`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unified_video_action.dataset.augmentation import VideoAugmentation
from unified_video_action.dataset.sampling import sample_seed, uniform
from unified_video_action.dataset.transforms import WindowTransform
from unified_video_action.spec import Horizon

HISTORY = 100  # stream of random numbers drawn from a sample's seed; the frame readers have others
HISTORIES = ("fixed", "random", "scattered")


@dataclass(frozen=True)
class WindowOptions:
    """Which windows are cut, what they hold, and what is drawn at random."""

    horizon: Horizon = field(default_factory=Horizon)
    pad_before: int = 1  # steps by which a window may reach over its episode's start
    pad_after: int = 7  # and over its end
    low_dim_steps: int | None = None  # newest states given; None: one for each history frame
    history_actions: bool = False  # samples carry the chunk before now
    future_low_dim: bool | Sequence[str] = False  # samples carry all, or these, states at the steps of the actions
    history_frequency: str = "fixed"  # "random": frames at random times up to now; "scattered": now need not be one
    augmentation: VideoAugmentation | None = None
    down_sample: int = 1  # recorded rows in a step of the horizon; each of them may be `now`
    # Recorded state, or "action": rows by which it is newer than the frame beside it when a robot reads it. Between
    # rows, numbers are mixed and rotations turned.
    latency: Mapping[str, float] = field(default_factory=dict)
    transforms: tuple[WindowTransform, ...] = ()  # of states and actions, one after the other

    def __post_init__(self) -> None:
        if self.history_frequency not in HISTORIES:
            raise ValueError(f"history_frequency={self.history_frequency!r}: expected one of {', '.join(HISTORIES)}")
        if self.low_dim_steps is not None and not 1 <= self.low_dim_steps <= self.horizon.history:
            raise ValueError(f"low_dim_steps={self.low_dim_steps}: expected 1 to {self.horizon.history}, or null")
        if not isinstance(self.down_sample, int) or self.down_sample < 1:
            raise ValueError(f"down_sample={self.down_sample!r}: expected a positive integer")
        for name, rows in self.latency.items():
            if not isinstance(rows, int | float) or not np.isfinite(rows):
                raise ValueError(f"latency.{name}={rows!r}: expected a number of recorded rows")

    def history_offsets(self, seeds: np.ndarray) -> np.ndarray:
        """Steps from `now` of the history frames: (H,), or where they are drawn (B, H)."""
        if self.history_frequency == "fixed":
            return np.array(self.horizon.history_offsets)
        draw = random_history if self.history_frequency == "random" else scattered_history
        return draw(self.horizon, sample_seed(seeds, HISTORY))


def reach(horizon: Horizon, history_actions: bool = False) -> tuple[int, int]:
    """Steps that a window covers before and after `now`, for example (15, 16).

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
    down_sample: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """All windows over episodes [start, end).

    Args:
        starts, ends: (E,) first row of each episode and the row after its last.
        pad_before, pad_after: steps by which a window may reach over an episode's start and end. At most what `reach`
            returns, at which every row of an episode is `now` once; 1 and 7 are the paper's.
        down_sample: rows that are recorded in a control step.

    Returns:
        episode: (W,) position in `starts` of each window's episode.
        now: (W,) row of its newest observed frame.
    """
    before, after = reach(horizon, history_actions)
    for name, pad, most in (("pad_before", pad_before, before), ("pad_after", pad_after, after)):
        if not 0 <= pad <= most:
            raise ValueError(f"{name}={pad}: expected 0 to {most}, so that `now` stays inside the episode")
    first = np.asarray(starts, np.int64) + down_sample * (before - pad_before)
    last = np.asarray(ends, np.int64) - 1 - down_sample * (after - pad_after)
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
        offsets: (n,) the same for all windows, or (B, n); integers, or floats for what lies between rows.

    Returns:
        rows (B, n), int64 or float64, and is_pad (B, n) bool, True beyond the episode's ends.
    """
    rows = now[:, None] + np.asarray(offsets)  # (B, n)
    first, last = start[:, None], end[:, None] - 1
    return np.clip(rows, first, last), (rows < first) | (rows > last)


def random_history(horizon: Horizon, seeds: np.ndarray) -> np.ndarray:
    """History offsets (B, H) at random times: `now`, and before it a sorted multiset from the last H * stride steps.

    All multisets are equally likely (816 of them by default), as with the paper code's `different_history_freq`.
    """
    steps, earlier = horizon.history * horizon.stride, horizon.history - 1
    order = uniform(seeds[:, None], np.arange(steps + earlier - 1)).argsort(axis=1)  # (B, steps + earlier - 1)
    drawn = np.sort(order[:, :earlier], axis=1) - np.arange(earlier)  # (B, H - 1); a set of places makes a multiset
    return np.column_stack([drawn, np.full(len(seeds), steps - 1)]) - (steps - 1)


def scattered_history(horizon: Horizon, seeds: np.ndarray) -> np.ndarray:
    """History offsets (B, H), sorted, at different times out of the last H * stride steps; `now` need not be one.

    All sets are equally likely (1820 of them by default), as in the paper code's data of hand-held grippers.
    """
    steps = horizon.history * horizon.stride
    order = uniform(seeds[:, None], np.arange(steps)).argsort(axis=1)  # (B, steps)
    return np.sort(order[:, : horizon.history], axis=1) - (steps - 1)


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
