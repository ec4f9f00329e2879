"""A scripted expert for PushT: goes to a point beside the T, pushes, looks again, until the T lies on the goal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse.csgraph import dijkstra

from unified_video_action.demos.collecting import Attempt, ZarrCollector, option
from unified_video_action.demos.pusht_planner import Planner, Push, inside_reach
from unified_video_action.env.checking import check_count, checked_vector
from unified_video_action.env.pusht.env import DEFAULT_GOAL, TABLE_SIZE, PushTEnv, render_states
from unified_video_action.env.pusht.geometry import CONVEX_CORNERS, OUTLINE, Pose, clearance, random_goal, to_table
from unified_video_action.env.pusht.table import Table

TRAVEL_STEP = 18.0  # pixels that the target moves on in a control step between pushes
MARGINS = (30.0, 24.0, 19.0)  # pixels the agent's centre keeps from the T on its way, tried in this order
ARRIVED = 1.5  # pixels from a push's start at which the push begins
SETTLING_STEPS = 6  # control steps to wait for that
RETREAT = 12.0  # pixels back after a push, so that the agent stops without pushing on
BEVEL = np.tan(np.pi / 8)  # paths cut a right corner as an octagon's side does
SAMPLE = 6.0  # pixels between the points at which a straight piece of a path is checked


@dataclass(frozen=True)
class Collector(ZarrCollector):
    """PushT's episodes, one per attempt number."""

    seed: int = option(0, "decides starts, goals and the expert's choices")
    goal: str = option("fixed", "fixed, or random: another goal pose in every episode")
    image_size: int = option(96, "pixels")
    max_steps: int = option(300, "control steps after which an attempt is given up")
    action_noise: float = option(1.0, "pixels, standard deviation of a slow drift added to every action")
    choice: float = option(4.0, "how freely the expert chooses among good plans, in control steps")
    mistakes: float = option(0.05, "chance of a random push that the expert then makes good")
    disturbance: float = option(0.0, "pixels, as --action-noise, of what is done, but not of what is recorded")

    def __post_init__(self) -> None:
        if self.goal not in ("fixed", "random"):
            raise ValueError(f"goal must be one of fixed, random, got {self.goal!r}")
        check_count("max_steps", self.max_steps, 1)
        if min(self.action_noise, self.choice, self.mistakes, self.disturbance) < 0 or self.mistakes >= 1:
            raise ValueError(f"noise must not be negative, and mistakes must be below 1, got {self}")

    def __call__(self, attempt: int) -> Attempt:
        rng = np.random.default_rng([self.seed, attempt])
        start_seed, expert_seed = (int(number) for number in rng.integers(2**31, size=2))
        goal = random_goal(rng) if self.goal == "random" else np.array(DEFAULT_GOAL)
        env = PushTEnv(goal=goal, observe_image=False)
        expert = ScriptedExpert(goal, expert_seed, self.action_noise, self.choice, self.mistakes)
        rows, infos = self.play(env, expert.act, start_seed, rng, 0, TABLE_SIZE)
        if not infos[-1]["is_success"] or not rows:  # nothing can be learnt from a start on the goal
            return Attempt(success=False)
        states = np.array([info["state"] for info in infos[:-1]])
        arrays = {
            "img": render_states(states, goal, self.image_size),
            "action": np.array([row["action"] for row in rows]),
            "state": states.astype(np.float32),
        }
        if self.disturbance:
            arrays["executed"] = np.array([row["executed"] for row in rows])
        coverage = max(info["coverage"] for info in infos)
        return Attempt(True, {"steps": len(rows), "coverage": coverage}, (arrays, {"goal": goal}))


@dataclass(frozen=True)
class RandomGoalCollector(Collector):
    """PushT-M's: another goal pose in every episode."""

    goal: str = field(default="random", init=False)


class ScriptedExpert:
    """Actions for one episode. `act` takes the state after every step of the environment, from the start on.

    Noise and freedom are as the collector's: a push that is `choice` control steps worse has 1/e of the chance.
    """

    def __init__(
        self, goal: Sequence[float] = DEFAULT_GOAL, seed: int = 0, action_noise: float = 0.0, choice: float = 0.0,
        mistakes: float = 0.0,
    ) -> None:  # fmt: skip
        self._rng = np.random.default_rng(seed)
        self._action_noise, self._choice, self._mistakes = action_noise, choice, mistakes
        self._planner = Planner(tuple(checked_vector("goal", goal, 3)), self._rng)
        self._table = Table()
        self._targets = self._play()
        self._drift = self._agent = np.zeros(2)
        self._pose: Pose = (0.0, 0.0, 0.0)

    def act(self, state: np.ndarray) -> np.ndarray:
        """`state` (agent x, y, block x, y, block angle) -> the agent's next target, float32 (2,)."""
        state = checked_vector("state", state, 5)
        self._agent, self._pose = state[:2], tuple(state[2:].tolist())
        self._drift = 0.8 * self._drift + 0.6 * self._rng.normal(0, self._action_noise, 2)
        return np.clip(next(self._targets) + self._drift, 0, TABLE_SIZE).astype(np.float32)

    def _play(self) -> Iterator[np.ndarray]:
        while True:
            push = self._choose()
            if push is None:  # nothing can be reached: go elsewhere and look again
                yield self._rng.uniform(0.2 * TABLE_SIZE, 0.8 * TABLE_SIZE, 2)
                continue
            before = self._pose
            yield from self._way(push.start)
            for _ in range(SETTLING_STEPS):
                if np.linalg.norm(self._agent - push.start) < ARRIVED:
                    break
                yield push.start
            if has_moved(before, self._pose):
                continue
            for step in range(1, push.steps + 1):
                yield push.start + step * push.speed * push.direction
            yield self._agent - RETREAT * push.direction

    def _choose(self) -> Push | None:
        if self._rng.random() < self._mistakes:
            pushes = self._planner.detours(self._pose)
            return pushes[self._rng.integers(len(pushes))] if pushes else None
        pushes = self._planner.plan(self._agent, self._pose)
        if not pushes or self._choice == 0:
            return pushes[0] if pushes else None
        worse = np.array([push.value - pushes[0].value for push in pushes])
        chances = np.exp(-worse / self._choice)
        return pushes[self._rng.choice(len(pushes), p=chances / chances.sum())]

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
    turn = abs((after[2] - before[2] + np.pi) % (2 * np.pi) - np.pi)
    return float(np.hypot(after[0] - before[0], after[1] - before[1])) > 2.5 or turn > 0.04


def find_path(start: np.ndarray, end: np.ndarray, pose: Pose, margin: float) -> np.ndarray | None:
    """The shortest way from `start` to `end` whose points keep `margin` pixels from the T; None when there is none.

    `start` and `end` themselves may be closer: a piece that touches one of them may be as close as that point is.
    Returns (K, 2), K >= 2, both ends included.
    """
    corners = to_table(bypass_points(margin), pose)
    nodes = np.concatenate([[start, end], corners[inside_reach(corners)]])
    lengths = np.linalg.norm(nodes[:, None] - nodes[None], axis=-1)
    _, before = dijkstra(np.where(visible_pairs(nodes, pose, margin), lengths, 0), indices=0, return_predecessors=True)
    path = [1]
    while path[-1] > 0:
        path.append(before[path[-1]])
    return nodes[path[::-1]] if path[-1] == 0 else None


def bypass_points(margin: float) -> np.ndarray:
    """Two points round each convex corner, such that a path over them stays `margin` away: (12, 2) in the T's frame."""
    points = []
    for index in CONVEX_CORNERS:
        corner = OUTLINE[index]
        sides = corner - OUTLINE[index - 1], corner - OUTLINE[(index + 1) % len(OUTLINE)]
        before, after = (side / np.linalg.norm(side) for side in sides)
        points += [corner + margin * (before + BEVEL * after), corner + margin * (BEVEL * before + after)]
    return np.array(points)


def visible_pairs(nodes: np.ndarray, pose: Pose, margin: float) -> np.ndarray:
    """Which of the points (N, 2) see each other past the T: bool (N, N)."""
    first, second = np.triu_indices(len(nodes), k=1)  # (P,)
    longest = np.linalg.norm(nodes[first] - nodes[second], axis=1).max()
    along = np.linspace(0, 1, max(2, int(np.ceil(longest / SAMPLE))))[:, None, None]  # (S, 1, 1)
    distances = clearance(nodes[first] + along * (nodes[second] - nodes[first]), pose)  # (S, P)
    allowed = np.minimum(margin, np.minimum(distances[0], distances[-1])) - 1.0  # the piece's own ends: (P,)
    visible = np.zeros((len(nodes), len(nodes)), bool)
    visible[first, second] = (distances >= allowed).all(axis=0)
    return visible | visible.T


def waypoints(path: np.ndarray, spacing: float) -> np.ndarray:
    """Points along a path (K, 2), `spacing` apart at most, the start left out: (M, 2)."""
    pieces = []
    for start, end in zip(path[:-1], path[1:], strict=True):
        count = max(1, int(np.ceil(np.linalg.norm(end - start) / spacing)))
        pieces.append(start + np.arange(1, count + 1)[:, None] / count * (end - start))
    return np.concatenate(pieces)
