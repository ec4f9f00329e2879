"""Moving recorded PushT episodes over the table, and playing their actions again where they have been moved to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unified_video_action.env.pusht.env import DEFAULT_GOAL, TABLE_SIZE, PushTEnv, render_states
from unified_video_action.env.pusht.geometry import OUTLINE, rotation, to_table
from unified_video_action.env.pusht.table import WALL_HIGH, WALL_LOW

CENTRE = TABLE_SIZE / 2
WALL_HALF_WIDTH = 2.0
ENDING = 10  # control steps, enough for the agent to be as fast as it was, however it starts
KEPT, OFF_TABLE, COVERAGE_LOST = "kept", "does not fit on the table", "covers less of the goal"


@dataclass(frozen=True)
class Motion:
    """A rigid motion of the table's plane: mirrored in the vertical line through the centre or not, then turned by
    `angle` about the centre, then shifted. A mirrored T is a T: it is symmetric."""

    mirrored: bool
    angle: float  # radians
    shift: tuple[float, float] = (0.0, 0.0)  # pixels

    def points(self, points: np.ndarray) -> np.ndarray:
        """Positions (..., 2) in table pixels."""
        sign = np.array([-1.0 if self.mirrored else 1.0, 1.0])
        return (points - CENTRE) * sign @ rotation(self.angle).T + CENTRE + np.array(self.shift)

    def poses(self, poses: np.ndarray) -> np.ndarray:
        """Poses (..., 3) of the T: x, y, and angle in [0, 2 pi)."""
        turned = self.angle + (-poses[..., 2:] if self.mirrored else poses[..., 2:])
        return np.concatenate([self.points(poses[..., :2]), np.mod(turned, 2 * np.pi)], axis=-1)

    def states(self, states: np.ndarray) -> np.ndarray:
        """States (..., 5): agent x, y, and the T's pose."""
        return np.concatenate([self.points(states[..., :2]), self.poses(states[..., 2:])], axis=-1)


@dataclass(frozen=True)
class Recording:
    """One recorded episode; row i of both belongs to the moment just before action i."""

    number: int
    states: np.ndarray  # (T, 5)
    actions: np.ndarray  # (T, 2)
    goal: Sequence[float] = DEFAULT_GOAL  # x, y, angle


@dataclass(frozen=True)
class Episode:
    """A moved recording; row i of every array belongs to the moment just before action i."""

    arrays: dict[str, np.ndarray]  # img uint8 (T, H, W, 3), action float32 (T, 2), state float32 (T, 5)
    meta: dict[str, np.ndarray]
    measures: dict[str, float]  # for the log


@dataclass(frozen=True)
class Mover:
    """Calling it with a recording gives `copies` pairs of an outcome (KEPT, ...) and, if it is kept, the new episode.

    The result depends on the seed, the recording and its number, not on the process or the order.
    """

    seed: int = 0
    copies: int = 2  # motions tried of every recording
    image_size: int = 96
    tolerance: float = 0.02  # coverage that a copy's maximum may be below the recording's
    angles: int = 64  # that are tried before a recording counts as too large to be turned

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"copies must be at least 1, got {self.copies}")
        for name in ("tolerance", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")

    def __call__(self, recording: Recording) -> list[tuple[str, Episode | None]]:
        original = greatest_coverage(recording)
        rng = np.random.default_rng([self.seed, recording.number])
        return [self._copy(recording, original, rng) for _ in range(self.copies)]

    def _copy(self, recording: Recording, original: float, rng: np.random.Generator) -> tuple[str, Episode | None]:
        motion = draw_motion(recording, rng, self.angles)
        if motion is None:
            return OFF_TABLE, None
        goal = motion.poses(np.array(recording.goal))
        actions = motion.points(recording.actions).astype(np.float32)
        start = motion.states(recording.states[0]).astype(np.float32)  # as stored, so that the store can be replayed
        states, coverage = replay(start, actions, goal)
        if coverage < original - self.tolerance:
            return COVERAGE_LOST, None
        frames = render_states(states, goal, self.image_size)
        arrays = {"img": frames, "action": actions, "state": states.astype(np.float32)}
        moved = np.array([motion.mirrored, motion.angle, *motion.shift])
        meta = {"goal": goal, "source_episode": np.int64(recording.number), "motion": moved}
        return KEPT, Episode(arrays, meta, {"coverage": coverage, "original": original})


def draw_motion(recording: Recording, rng: np.random.Generator, angles: int) -> Motion | None:
    """A random motion that keeps T and goal within the walls, and the agent and its targets on the table.

    Whether it is mirrored and the angle are drawn until there is a shift that does; then the shift is drawn.
    None when none is found after so many attempts.
    """
    poses = np.concatenate([recording.states[:, 2:], [recording.goal]])
    blocks = np.stack([to_table(OUTLINE, pose) for pose in poses]).reshape(-1, 2)
    agents = np.concatenate([recording.states[:, :2], recording.actions])
    walls = WALL_LOW + WALL_HALF_WIDTH, WALL_HIGH - WALL_HALF_WIDTH
    for _ in range(angles):
        motion = Motion(bool(rng.integers(2)), rng.uniform(-np.pi, np.pi))
        least, most = np.full(2, -np.inf), np.full(2, np.inf)
        for points, (low, high) in ((blocks, walls), (agents, (0.0, TABLE_SIZE))):
            moved = motion.points(points)
            least, most = np.maximum(least, low - moved.min(axis=0)), np.minimum(most, high - moved.max(axis=0))
        if (least <= most).all():
            return Motion(motion.mirrored, motion.angle, tuple(rng.uniform(least, most).tolist()))
    return None


def replay(start: np.ndarray, actions: np.ndarray, goal: Sequence[float]) -> tuple[np.ndarray, float]:
    """The states (T, 5) before every action, and the most of the goal that was covered, after the last one included."""
    env = PushTEnv(goal=goal, observe_image=False)
    _, info = env.reset(options={"state": start})
    states, coverage = [], info["coverage"]
    for action in actions:
        states.append(info["state"])
        info = env.step(action)[-1]
        coverage = max(coverage, info["coverage"])
    return np.array(states), coverage


def greatest_coverage(recording: Recording) -> float:
    """The most of the goal that the T covers in the recorded states, and after the last action.

    What that one leads to is not recorded, and often the best of all: the last actions are played again.
    """
    env = PushTEnv(goal=recording.goal, observe_image=False)
    env.reset(seed=0)
    _, ending = replay(recording.states[-ENDING:][0], recording.actions[-ENDING:], recording.goal)
    return max(ending, *(env.coverage_at(state) for state in recording.states))
