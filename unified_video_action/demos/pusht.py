"""A scripted expert for PushT: goes to a place beside the T, pushes, looks again, until the T lies on the goal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unified_video_action.env.pusht.env import DEFAULT_GOAL, TABLE_SIZE, checked_vector
from unified_video_action.env.pusht.geometry import Pose
from unified_video_action.env.pusht.navigation import find_path, waypoints
from unified_video_action.env.pusht.planner import Planner, Push
from unified_video_action.env.pusht.table import Table

TRAVEL_STEP = 18.0  # pixels that the target moves on in a control step between pushes
MARGINS = (30.0, 24.0, 19.0)  # pixels the agent's centre keeps from the T on its way, tried in this order
ARRIVED = 1.5  # pixels from a push's start at which the push begins
SETTLING_STEPS = 6  # control steps to wait for that
RETREAT = 12.0  # pixels back after a push, so that the agent stops without pushing on


@dataclass(frozen=True)
class Variety:
    """How much the expert departs from its best play, to show more of the table and ways back from mistakes."""

    action_noise: float = 0.0  # pixels, standard deviation of a slow drift added to every target
    choice: float = 0.0  # control steps; a push whose value is so much worse is still chosen with 1/e of the chance
    mistakes: float = 0.0  # chance that a random push is made instead, from which the expert then recovers

    def __post_init__(self) -> None:
        if min(self.action_noise, self.choice, self.mistakes) < 0 or self.mistakes >= 1:
            raise ValueError(f"variety must not be negative, and mistakes must be below 1, got {self}")


class ScriptedExpert:
    """Actions for one episode. `act` takes the state after every step of the environment, from the start on."""

    def __init__(self, goal: Sequence[float] = DEFAULT_GOAL, seed: int = 0, variety: Variety | None = None) -> None:
        self._rng = np.random.default_rng(seed)
        self._variety = variety or Variety()
        self._planner = Planner(tuple(checked_vector("goal", goal, 3)), self._rng)
        self._table = Table()
        self._targets = self._play()
        self._drift = np.zeros(2)
        self._agent = np.zeros(2)
        self._pose: Pose = (0.0, 0.0, 0.0)

    def act(self, state: np.ndarray) -> np.ndarray:
        """`state` (agent x, y, block x, y, block angle) -> the agent's next target, float32 (2,)."""
        state = checked_vector("state", state, 5)
        self._agent, self._pose = state[:2], tuple(state[2:].tolist())
        self._drift = 0.8 * self._drift + 0.6 * self._rng.normal(0, self._variety.action_noise, 2)
        return np.clip(next(self._targets) + self._drift, 0, TABLE_SIZE).astype(np.float32)

    def _play(self) -> Iterator[np.ndarray]:
        while True:
            push = self._choose()
            if push is None:  # nothing can be reached: go elsewhere and look again
                yield self._rng.uniform(0.2 * TABLE_SIZE, 0.8 * TABLE_SIZE, 2)
                continue
            before = self._pose
            yield from self._travel(push.start)
            if has_moved(before, self._pose):
                continue
            for step in range(1, push.steps + 1):
                yield push.start + step * push.speed * push.direction
            yield self._agent - RETREAT * push.direction

    def _choose(self) -> Push | None:
        if self._rng.random() < self._variety.mistakes:
            pushes = self._planner.detours(self._pose)
            return pushes[self._rng.integers(len(pushes))] if pushes else None
        pushes = self._planner.plan(self._agent, self._pose)
        if not pushes or self._variety.choice == 0:
            return pushes[0] if pushes else None
        worse = np.array([push.value - pushes[0].value for push in pushes])
        chances = np.exp(-worse / self._variety.choice)
        return pushes[self._rng.choice(len(pushes), p=chances / chances.sum())]

    def _travel(self, end: np.ndarray) -> Iterator[np.ndarray]:
        yield from self._way(end)
        for _ in range(SETTLING_STEPS):
            if np.linalg.norm(self._agent - end) < ARRIVED:
                return
            yield end

    def _way(self, end: np.ndarray) -> np.ndarray:
        """Targets (N, 2) on a way to `end` that, tried on the copy of the table, leaves the T where it is."""
        way = end[None]
        for margin in MARGINS:
            path = find_path(self._agent, end, self._pose, margin)
            if path is None:
                continue
            way = waypoints(path, TRAVEL_STEP)
            self._table.place(self._agent, self._pose)
            for target in way:
                self._table.move(target)
            if not has_moved(self._pose, self._table.pose):
                break
        return way


def has_moved(before: Pose, after: Pose) -> bool:
    """Whether the T lies elsewhere than a plan supposed."""
    return float(np.hypot(after[0] - before[0], after[1] - before[1])) > 2.5 or turned(before[2], after[2]) > 0.04


def turned(before: float, after: float) -> float:
    """Angle between two directions, in [0, pi]."""
    return abs((after - before + np.pi) % (2 * np.pi) - np.pi)
