"""Looks for the next push: rolls pushes out on a copy of the table and looks one further push ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from unified_video_action.env.pusht.geometry import (
    AGENT_RADIUS,
    CENTRE_HEIGHT,
    CENTRE_OF_MASS,
    INERTIA,
    OUTLINE,
    TURN_RADIUS,
    Pose,
    clearance,
    rotation,
    to_table,
)
from unified_video_action.env.pusht.table import Table

REACH = (14.0, 498.0)  # the agent's centre stays between these, in x and y
GAP = 4.0  # pixels between the agent and the contact before a push
LEAST_GAP = 1.5  # and between it and any other part of the T
TRAVEL_SPEED = 14.0  # pixels per control step, for guessing how long the way to a push takes
SETTLING_STEPS = 4  # control steps that every change of contact costs besides the way
PATIENCE = 5  # a rollout ends after so many steps without a new best
DISTANCE_AT_SUCCESS = 1.5  # from the goal, at which coverage is safely beyond the threshold


@dataclass(frozen=True)
class Stage:
    """How to push while the T is at least `above` pixels from the goal."""

    above: float
    spacing: float  # pixels between contacts
    speed: float  # pixels per control step
    steps: int  # longest push
    angles: tuple[float, ...]  # of the push against the contact's normal
    contacts: int  # how many of the contacts that promise most are tried


STAGES = (
    Stage(above=25, spacing=20, speed=12, steps=18, angles=(-0.5, 0.0, 0.5), contacts=10),
    Stage(above=8, spacing=15, speed=6, steps=14, angles=(-0.5, 0.0, 0.5), contacts=10),
    Stage(above=0, spacing=10, speed=2.5, steps=16, angles=(-0.4, 0.0, 0.4), contacts=12),
)
LOOKAHEAD, LOOKAHEAD_CONTACTS = 6, 5  # first pushes from which a second one is tried, and contacts for that
DETOURS = 8  # random pushes that are tried when no push gains much
DETOUR_SPACING, DETOUR_SPEED = 25.0, 6.0  # as in Stage; the speed at least
DETOUR_LENGTHS = (6, 10, 14)  # control steps
LEAST_SLOPE = -0.01  # pixels gained per pixel of push, below which a contact is not tried
TOO_LITTLE = 0.93  # a plan that leaves more than this share of the distance is stuck


@dataclass(frozen=True)
class Push:
    """A straight push, from `start` along `direction`, and where it leaves the T by the rollout."""

    start: np.ndarray  # (2,) the agent's centre before the push
    direction: np.ndarray  # (2,) unit length
    speed: float  # pixels per control step
    steps: int
    pose: Pose  # of the T afterwards
    agent: tuple[float, float]  # afterwards
    distance: float  # of the T from the goal afterwards
    value: float = math.inf  # guessed control steps until success, this push included


class Planner:
    """Pushes for one goal."""

    def __init__(self, goal: Pose, rng: np.random.Generator) -> None:
        self.distance = GoalDistance(goal)
        self._rng = rng
        self._table = Table()

    def plan(self, agent: np.ndarray, pose: Pose) -> list[Push]:
        """Pushes worth making now, best value first; empty when the T cannot be reached at all."""
        now = self.distance(pose)
        stage = stage_at(now)
        firsts = self.gaining_pushes(pose, stage, stage.contacts)
        firsts.sort(key=lambda push: travel_steps(agent, push) + push.steps + steps_to_go(push.distance))
        plans = [self.look_ahead(agent, push, stage) for push in firsts[:LOOKAHEAD]]
        if not plans or min(push.distance for push in plans) > TOO_LITTLE * now:
            plans += [self.look_ahead(agent, push, stage) for push in self.detours(pose)]
        return sorted(plans, key=lambda push: push.value)

    def look_ahead(self, agent: np.ndarray, push: Push, stage: Stage) -> Push:
        """The push with its value: its own steps and the best that can follow."""
        to_go = steps_to_go(push.distance)
        if to_go > 0:
            for second in self.gaining_pushes(push.pose, stage, LOOKAHEAD_CONTACTS):
                steps = travel_steps(np.array(push.agent), second) + second.steps
                to_go = min(to_go, steps + steps_to_go(second.distance))
        return replace(push, value=travel_steps(agent, push) + push.steps + to_go)

    def gaining_pushes(self, pose: Pose, stage: Stage, count: int) -> list[Push]:
        """Pushes that bring the T closer, from the `count` contacts where its first pixel gains most."""
        points, normals = outline_contacts(stage.spacing)
        slopes = self.distance.push_slopes(pose, points, normals)
        order = np.argsort(slopes)[:count]
        order = order[slopes[order] < LEAST_SLOPE]
        starts = self.starts(pose, points[order], normals[order], stage.angles)
        pushes = [self.roll_out(pose, start, direction, stage) for start, direction in starts]
        return [push for push in pushes if push is not None]

    def detours(self, pose: Pose) -> list[Push]:
        """A few random pushes from anywhere, in several lengths, whether they gain or not."""
        starts = self.starts(pose, *outline_contacts(DETOUR_SPACING), (-0.5, 0.0, 0.5))
        chosen = self._rng.permutation(len(starts))[:DETOURS]
        speed = max(stage_at(self.distance(pose)).speed, DETOUR_SPEED)
        pushes = []
        for start, direction in (starts[index] for index in chosen):
            self._table.place(start, pose)
            for step in range(1, max(DETOUR_LENGTHS) + 1):
                target = start + step * speed * direction
                if not inside_reach(target):
                    break
                self._table.move(target)
                if step in DETOUR_LENGTHS:
                    pushes.append(self._push(start, direction, speed, step))
        return pushes

    def starts(
        self, pose: Pose, points: np.ndarray, normals: np.ndarray, angles: tuple[float, ...]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Where the agent can begin a push, and in which direction, on the table."""
        result, turn = [], rotation(pose[2])
        for angle in angles:
            directions = -normals @ rotation(angle).T @ turn.T  # (N, 2)
            starts = to_table(points, pose) - (AGENT_RADIUS + GAP) * directions  # (N, 2)
            fits = inside_reach(starts) & (clearance(starts, pose) >= AGENT_RADIUS + LEAST_GAP)
            result += list(zip(starts[fits], directions[fits], strict=True))
        return result

    def roll_out(self, pose: Pose, start: np.ndarray, direction: np.ndarray, stage: Stage) -> Push | None:
        """The length of this push that leaves the T closest to the goal; None when no length gains."""
        best, least, best_step = None, self.distance(pose) - 1e-3, 0
        self._table.place(start, pose)
        for step in range(1, stage.steps + 1):
            target = start + step * stage.speed * direction
            if not inside_reach(target):
                break
            self._table.move(target)
            if self.distance(self._table.pose) < least:
                best, best_step = self._push(start, direction, stage.speed, step), step
                least = best.distance
            elif step - best_step > (PATIENCE if best else 2 * PATIENCE):
                break
        return best

    def _push(self, start: np.ndarray, direction: np.ndarray, speed: float, steps: int) -> Push:
        """The push whose rollout has brought the table to where it is."""
        pose = self._table.pose
        return Push(start, direction, speed, steps, pose, tuple(self._table.agent), self.distance(pose))


def inside_reach(points: np.ndarray) -> np.ndarray:
    """Whether the agent can be at points (..., 2): (...)."""
    return ((points > REACH[0]) & (points < REACH[1])).all(axis=-1)


def stage_at(distance: float) -> Stage:
    return next(stage for stage in STAGES if distance >= stage.above)


def travel_steps(agent: np.ndarray, push: Push) -> float:
    """Guess of the control steps until a push can begin."""
    return float(np.linalg.norm(agent - push.start)) / TRAVEL_SPEED + SETTLING_STEPS


def steps_to_go(distance: float) -> float:
    """Guess of the control steps to success: the last ten pixels cost as much as the hundred before them."""
    return 20 * math.log2(1 + max(distance - DISTANCE_AT_SUCCESS, 0) / 2)


@cache
def outline_contacts(spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2) `spacing` pixels apart along every side of the T, in its frame, and unit normals (N, 2) out of it.

    At least one lies on each side.
    """
    points, normals = [], []
    for start, end in zip(OUTLINE, np.roll(OUTLINE, -1, axis=0), strict=True):
        along = end - start
        length = np.linalg.norm(along)
        count = max(1, int(length // spacing))
        points.append(start + (np.arange(count)[:, None] + 0.5) / count * along)
        normals.append(np.tile([along[1] / length, -along[0] / length], (count, 1)))
    return np.concatenate(points), np.concatenate(normals)


class GoalDistance:
    """How far the T is from the goal, in pixels: the way of its centre of mass and its turn at TURN_RADIUS, as legs.

    Unlike the mean distance of the T's corners, it falls all the way from any pose to the goal, also from the far side.
    """

    def __init__(self, goal: Pose) -> None:
        self._angle = goal[2]
        self._centre_x, self._centre_y = to_table(CENTRE_OF_MASS, goal).tolist()

    def legs(self, pose: Pose) -> tuple[float, float, float]:
        """Offset of the centre of mass in x and y, and of the angle times TURN_RADIUS, from the goal."""
        x, y, angle = pose
        centre_x = x - math.sin(angle) * CENTRE_HEIGHT  # plain floats: one pose is too little for numpy to pay
        centre_y = y + math.cos(angle) * CENTRE_HEIGHT
        turn = (angle - self._angle + math.pi) % (2 * math.pi) - math.pi
        return centre_x - self._centre_x, centre_y - self._centre_y, TURN_RADIUS * turn

    def __call__(self, pose: Pose) -> float:
        return math.hypot(*self.legs(pose))

    def push_slopes(self, pose: Pose, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Change of the distance per pixel that a push against a contact's normal moves that contact: (N,).

        Contacts have no friction and the T has mass 1, so a push moves the centre of mass by an impulse J along the
        normal, and turns the T by J * arm / INERTIA.
        """
        leg_x, leg_y, leg_turn = self.legs(pose)
        push, lever = -normals, points - CENTRE_OF_MASS  # (N, 2)
        arm = lever[:, 0] * push[:, 1] - lever[:, 1] * push[:, 0]  # (N,)
        translation = push @ rotation(pose[2]).T @ np.array([leg_x, leg_y])  # (N,)
        turning = leg_turn * TURN_RADIUS * arm / INERTIA  # (N,)
        return (translation + turning) / (1 + arm * arm / INERTIA) / max(self(pose), 1e-9)
