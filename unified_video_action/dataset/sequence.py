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
    pad_before: int | None = 1  # steps by which a window may reach over its episode's start; None: all the way
    pad_after: int | None = 7  # and over its end; 1 and 7 are the paper's
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
    return before, max(horizon.future * horizon.stride, horizon.action_offsets[-1])


def window_rows(options: WindowOptions, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All windows over episodes [start, end), both (E,): position of its episode (W,) and row `now` (W,) of each."""
    cut = []
    for name, most in zip(("pad_before", "pad_after"), reach(options.horizon, options.history_actions), strict=True):
        pad = getattr(options, name)
        if pad is not None and not 0 <= pad <= most:
            raise ValueError(f"{name}={pad}: expected 0 to {most}, so that `now` stays inside the episode")
        cut.append(0 if pad is None else options.down_sample * (most - pad))
    first = np.asarray(starts, np.int64) + cut[0]
    counts = np.maximum(np.asarray(ends, np.int64) - cut[1] - first, 0)
    episode = np.repeat(np.arange(len(counts)), counts)  # (W,)
    offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # (W,) window within its episode
    return episode, first[episode] + offset


def clamp_rows(
    now: np.ndarray, start: np.ndarray, end: np.ndarray, offsets: np.ndarray | tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (B, n) at `offsets` (n,) or (B, n) from `now` (B,), and which of them are padding (B, n).

    Rows beyond the episode [start, end) are its first or last one. Floats lie between rows.
    """
    rows = now[:, None] + np.asarray(offsets)  # (B, n)
    first, last = start[:, None], end[:, None] - 1
    return np.clip(rows, first, last), (rows < first) | (rows > last)


def random_history(horizon: Horizon, seeds: np.ndarray) -> np.ndarray:
    """History offsets (B, H) at random times: `now`, and before it a sorted multiset from the last H * stride steps.

    All multisets are equally likely (816 of them by default), as with the paper code's `different_history_freq`.
    """
    steps, earlier = horizon.history * horizon.stride, horizon.history - 1
    drawn = _sets(seeds, steps + earlier - 1, earlier) - np.arange(earlier)  # (B, H - 1); a set makes a multiset
    return np.column_stack([drawn - (steps - 1), np.zeros(len(seeds), np.int64)])


def scattered_history(horizon: Horizon, seeds: np.ndarray) -> np.ndarray:
    """History offsets (B, H), sorted, at different times out of the last H * stride steps; `now` need not be one.

    All sets are equally likely (1820 of them by default), as in the paper code's data of hand-held grippers.
    """
    steps = horizon.history * horizon.stride
    return _sets(seeds, steps, horizon.history) - (steps - 1)


def _sets(seeds: np.ndarray, size: int, count: int) -> np.ndarray:
    """(B, count): a sorted set of numbers below `size` for each seed."""
    order = uniform(seeds[:, None], np.arange(size)).argsort(axis=1)  # (B, size)
    return np.sort(order[:, :count], axis=1)


def split_episodes(
    n_episodes: int, val_ratio: float, seed: int, max_train_episodes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Episode numbers (training, held out), sorted; the draw equals the paper code's for the same seed."""
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
