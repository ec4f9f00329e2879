"""Windows over the recorded poses of a hand: reading between rows, noise on where it began, what a policy reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from unified_video_action.dataset.window_transforms import WindowStates, WindowTransform, neighbours, normal
from unified_video_action.poses import HandSpec, between, from_vector, to_vector

# The states that a source records of a hand.
POSE = "pose"  # position (metres) and axis-angle (radians), (6,)
GRIPPER = "gripper"  # opening, metres, (1,)
START_POSE = "start_pose"  # in which the episode began, (6,)
HAND_STATES = (POSE, GRIPPER, START_POSE)

START_NOISE = 101  # stream of random numbers


def poses_between(poses: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Poses (..., 6) at `rows` (...) of poses (N, 6): positions in proportion, rotations along the shortest turn."""
    below, above, share = neighbours(rows)
    if share is None:
        return poses[below]
    made = to_vector(between(from_vector(poses[below]), from_vector(poses[above]), share[..., 0]))
    return made.astype(poses.dtype)


@dataclass(frozen=True)
class StartNoise(WindowTransform):
    """In training, adds normal noise to the six numbers of the pose in which the episode began.

    A policy that reads its rotation from the start would otherwise trust that start more than a robot, put in place by
    hand, can offer.
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
class HandWindows(WindowTransform):
    """Recorded poses become the states and actions that a policy reads and says, by the task's `hand`."""

    hand: HandSpec

    def __call__(self, states: WindowStates) -> WindowStates:
        now = from_vector(states.now[POSE][:, 0])  # (B, 4, 4)
        start = from_vector(states.now[START_POSE][:, 0])  # (B, 4, 4)

        def observed(recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return self.hand.observe(from_vector(recorded[POSE]), recorded[GRIPPER][..., 0], now, start)

        def acted(recorded: Mapping[str, np.ndarray]) -> np.ndarray:
            return self.hand.actions(from_vector(recorded[POSE]), recorded[GRIPPER][..., 0], now)

        return replace(
            states,
            history=observed(states.history),
            now=observed(states.now),
            future=observed(states.future),
            action=acted(states.targets),
            history_action=acted(states.past_targets) if states.past_targets else None,
        )
