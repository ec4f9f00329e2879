"""What a batch of windows recorded besides frames, and the transforms through which it becomes what samples hold.

A dataset reads the states of its windows, at the times that its options ask for, into a `WindowStates`; each of
`WindowOptions.transforms` makes another one of it. Transforms are small values: all that is random in them is a
function of the samples' seeds, and absent while a policy is measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from unified_video_action.dataset.sampling import sample_seed, uniform
from unified_video_action.poses import EndEffectorSpec, between, from_vector, to_vector

# The states that a source records of an end effector.
POSE = "pose"  # position (metres) and axis-angle (radians), (6,)
GRIPPER = "gripper"  # opening, metres, (1,)
START_POSE = "start_pose"  # in which the episode began, (6,)
END_EFFECTOR_STATES = (POSE, GRIPPER, START_POSE)

START_NOISE = 101  # stream of random numbers


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
    executed: np.ndarray | None = None  # (B, A, D): actions as carried out, where a source knows of others


class WindowTransform(ABC):
    """Makes other states and actions of those of a batch of windows, without changing the arrays given."""

    poses: ClassVar[frozenset[str]] = frozenset()  # states that it takes for positions and axis-angle vectors, (6,)

    @abstractmethod
    def __call__(self, states: WindowStates) -> WindowStates: ...


@dataclass(frozen=True)
class StartNoise(WindowTransform):
    """In training, adds normal noise to the six numbers of the pose in which the episode began.

    A robot is put in place by hand, so a policy must not trust that start too much.
    """

    deviation: float = 0.05  # standard deviation: metres of the position, radians of the axis-angle vector

    def __post_init__(self) -> None:
        if not self.deviation >= 0:
            raise ValueError(f"StartNoise.deviation={self.deviation}: expected a number >= 0")

    def __call__(self, states: WindowStates) -> WindowStates:
        if not states.training or not self.deviation:
            return states
        start = states.now[START_POSE]  # (B, 1, 6)
        noisy = start + self.deviation * normal(states.seeds, START_NOISE, 6)[:, None]
        return replace(states, now={**states.now, START_POSE: noisy.astype(start.dtype)})


@dataclass(frozen=True)
class EndEffectorWindows(WindowTransform):
    """Recorded poses become the states and actions that a policy reads and says, by the task's `end_effector`."""

    poses = frozenset({POSE, START_POSE})

    end_effector: EndEffectorSpec

    def __call__(self, states: WindowStates) -> WindowStates:
        now = from_vector(states.now[POSE][:, 0])  # (B, 4, 4)
        start = from_vector(states.now[START_POSE][:, 0])  # (B, 4, 4)

        def poses(recorded: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            return from_vector(recorded[POSE]), recorded[GRIPPER][..., 0]

        seen = {
            part: self.end_effector.observe(*poses(getattr(states, part)), now, start)
            for part in ("history", "now", "future")
        }
        past = self.end_effector.actions(*poses(states.past_targets), now) if states.past_targets else None
        return replace(
            states, **seen, action=self.end_effector.actions(*poses(states.targets), now), history_action=past
        )


def normal(seeds: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Standard normal numbers (B, count), a function of each seed (B,); other streams give independent ones."""
    own = sample_seed(np.asarray(seeds), stream)[:, None]
    numbers = np.arange(count)
    length = np.sqrt(-2 * np.log1p(-uniform(own, numbers)))
    return length * np.cos(2 * np.pi * uniform(own, count + numbers))


def rows_between(values: np.ndarray, rows: np.ndarray, poses: bool = False) -> np.ndarray:
    """Rows (...), whole or between two stored ones, of values (N, d): (..., d), of the same dtype.

    Numbers are mixed in proportion; `poses` (N, 6) turn along the shortest way.
    """
    if np.issubdtype(rows.dtype, np.integer):
        return values[rows]
    below = np.floor(rows).astype(np.int64)
    before, after, share = values[below], values[np.ceil(rows).astype(np.int64)], (rows - below)[..., None]
    if poses:
        return to_vector(between(from_vector(before), from_vector(after), share[..., 0])).astype(values.dtype)
    return ((1 - share) * before + share * after).astype(values.dtype)
