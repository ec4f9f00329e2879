"""What a batch of windows recorded besides frames, and the transforms through which it becomes what samples hold.

A dataset reads the states of its windows, at the times that its options ask for, into a `WindowStates`; each of
`WindowOptions.transforms` makes another one of it. Transforms are small values: all that is random in them is a
function of the samples' seeds, and absent while a policy is measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unified_video_action.dataset.sampling import sample_seed, uniform


@dataclass(frozen=True)
class WindowStates:
    """States, by name, and actions of B windows, all in NumPy."""

    history: Mapping[str, np.ndarray]  # (B, P, d): at the history frames, or the newest of them
    now: Mapping[str, np.ndarray]  # (B, 1, d)
    future: Mapping[str, np.ndarray]  # (B, A, d): as they will be observed at the steps of the actions
    targets: Mapping[str, np.ndarray]  # (B, A, d): where the actions lead; `future` but for latencies
    past_targets: Mapping[str, np.ndarray]  # (B, A, d): where those before now led; empty unless they are given
    action: np.ndarray  # (B, A, D)
    history_action: np.ndarray | None  # (B, A, D): the chunk before now, where it is given
    action_is_pad: np.ndarray  # (B, A) bool
    seeds: np.ndarray  # (B,) of the samples
    training: bool  # False: nothing is to be random


class WindowTransform(ABC):
    """Makes other states and actions of those of a batch of windows, without changing the arrays given."""

    @abstractmethod
    def __call__(self, states: WindowStates) -> WindowStates: ...


def normal(seeds: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Standard normal numbers (B, count), a function of each seed (B,); other streams give independent ones."""
    own = sample_seed(np.asarray(seeds), stream)[:, None]
    places = np.arange(count)
    length = np.sqrt(-2 * np.log1p(-uniform(own, places)))
    return length * np.cos(2 * np.pi * uniform(own, count + places))


def rows_between(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows (...) of values (N, d), which may lie between two stored ones: (..., d), of the same dtype."""
    below, above, share = neighbours(rows)
    if share is None:
        return values[below]
    return ((1 - share) * values[below] + share * values[above]).astype(values.dtype)


def neighbours(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The stored rows below and above `rows` (...), and how far towards the latter they lie: (..., 1) in [0, 1).

    For whole rows, of an integer dtype, both are the same and there is no share.
    """
    if np.issubdtype(rows.dtype, np.integer):
        return rows, rows, None
    below = np.floor(rows).astype(np.int64)
    return below, np.ceil(rows).astype(np.int64), (rows - below)[..., None]
