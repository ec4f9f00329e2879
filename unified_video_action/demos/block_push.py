"""A scripted demonstrator of block pushing: goes behind a block, pushes it into a square, then does the other one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from unified_video_action.demos.collecting import Attempt, ZarrCollector, option
from unified_video_action.env.block_push.env import BlockPushEnv, frame_size
from unified_video_action.env.block_push.layout import (
    BLOCK_SIDE,
    EFFECTOR_RADIUS,
    HIGH,
    LOW,
    STATE_SIZE,
    STEP,
    split_state,
)
from unified_video_action.env.checking import check_count, checked_vector

TRAVEL_STEP = 0.9 * STEP  # metres in a control step between pushes
PUSH_STEP = 0.02  # and while pushing
REACH = BLOCK_SIDE / np.sqrt(2) + EFFECTOR_RADIUS  # the effector cannot touch a block whose centre is farther away
CLEAR = REACH + 0.012  # distance kept from blocks on the way
BEHIND = CLEAR + 0.005  # distance behind a block at which a push begins
ARRIVED = 0.006
ASTRAY = 0.014  # off the line from block to goal, at which a push is given up and begun again
PUT = 0.015  # metres from a square's centre at which a block has been put there
CLEARANCE = BLOCK_SIDE * np.sqrt(2) + 0.012  # distance kept between the centres of a pushed block and the other one


@dataclass(frozen=True)
class Collector(ZarrCollector):
    """Block pushing's episodes, one per attempt number.

    The order of the blocks and the square of each are sampled for every episode, so that from the same start there
    are four ways.
    """

    seed: int = option(0, "decides starts, orders, squares and noise")
    image_size: int = option(96, "height of the frames in pixels; their width is 4/3 of it")
    max_steps: int = option(350, "control steps after which an attempt is given up")
    action_noise: float = option(0.002, "metres, standard deviation of a slow drift added to every action")
    disturbance: float = option(0.0, "metres, as --action-noise, of what is done, but not of what is recorded")

    def __post_init__(self) -> None:
        frame_size(self.image_size)
        check_count("max_steps", self.max_steps, 1)
        for name in ("action_noise", "disturbance"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0 metres, got {getattr(self, name)}")

    def __call__(self, attempt: int) -> Attempt:
        rng = np.random.default_rng([self.seed, attempt])
        start_seed, expert_seed = (int(number) for number in rng.integers(2**31, size=2))
        expert = ScriptedExpert(expert_seed, self.action_noise)
        env = BlockPushEnv(self.image_size)
        with contextlib.closing(env):
            rows, infos = self.play(env, expert.act, start_seed, rng, LOW, HIGH)
        if not infos[-1]["is_success"]:
            return Attempt(success=False)
        kept = {"img": "image", "effector": "effector", "action": "action"} | (
            {"executed": "executed"} if self.disturbance else {}
        )
        arrays = {name: np.stack([row[key] for row in rows]) for name, key in kept.items()}
        arrays["state"] = np.array([info["state"] for info in infos[:-1]], np.float32)
        meta = {"order": np.array(expert.order), "squares": np.array(expert.squares)}
        return Attempt(True, {"steps": len(rows)}, (arrays, meta))


class ScriptedExpert:
    """Actions for one episode. `act` takes the state after every step of the environment, from the start on.

    Drawn from the seed are the `order` in which the two blocks (0 red, 1 green) are pushed, and the `squares` that they
    are pushed into. `action_noise` is as the collector's.
    """

    def __init__(self, seed: int = 0, action_noise: float = 0.0) -> None:
        self._rng = np.random.default_rng(seed)
        self._action_noise = action_noise
        self.order = tuple(int(block) for block in self._rng.permutation(2))
        self.squares = tuple(int(square) for square in self._rng.permutation(2))
        self._targets = self._play()
        self._drift = np.zeros(2)
        self._effector, self._blocks, self._squares = split_state(np.zeros(STATE_SIZE))

    def act(self, state: np.ndarray) -> np.ndarray:
        """`state` (14,), see `layout` -> the effector's next target, float32 (2,)."""
        self._effector, self._blocks, self._squares = split_state(checked_vector("state", state, STATE_SIZE))
        self._drift = 0.8 * self._drift + 0.6 * self._rng.normal(0, self._action_noise, 2)
        return np.clip(next(self._targets) + self._drift, LOW, HIGH).astype(np.float32)

    def _play(self) -> Iterator[np.ndarray]:
        """Targets without end; a block that left its square again is pushed again."""
        while True:
            for block, square in zip(self.order, self.squares, strict=True):
                yield from self._put(block, square)
            yield self._effector

    def _put(self, block: int, square: int) -> Iterator[np.ndarray]:
        while distance(self._blocks[block], self._squares[square]) > PUT:
            goal = self._goal(block, square)
            start = self._behind(block, goal)
            if distance(self._effector, start) > ARRIVED:
                yield self._travel(start)
            else:
                yield from self._push(block, square)

    def _push(self, block: int, square: int) -> Iterator[np.ndarray]:
        """Push until the block is there or the effector has left the line, keeping it on the line behind the block."""
        while distance(self._blocks[block], self._squares[square]) > PUT:
            centre, goal = self._blocks[block, :2], self._goal(block, square)
            along = unit(goal - centre)
            offset = self._effector - centre
            behind = -float(along @ offset)
            if behind <= 0 or np.linalg.norm(offset + behind * along) > ASTRAY:
                return
            step = min(PUSH_STEP, distance(centre, goal) + behind - REACH + 0.01)
            yield centre - (behind - max(step, 0.004)) * along

    def _behind(self, block: int, goal: np.ndarray) -> np.ndarray:
        """(2,) where a push of the block towards `goal` begins."""
        centre = self._blocks[block, :2]
        return centre - BEHIND * unit(goal - centre)

    def _goal(self, block: int, square: int) -> np.ndarray:
        """(2,) where to push the block next: its square, or a point beside the other block where that is in the way."""
        centre, target, other = self._blocks[block, :2], self._squares[square, :2], self._blocks[1 - block, :2]
        return around(centre, target, other, CLEARANCE)

    def _travel(self, goal: np.ndarray) -> np.ndarray:
        """(2,) the next target on a way to `goal` that touches no block."""
        here, point = self._effector, goal
        blocks = sorted(self._blocks[:, :2], key=lambda centre: distance(here, centre))
        for centre in blocks:
            if distance(here, centre) < CLEAR - 0.004:  # just pushed: leave it first
                return here + TRAVEL_STEP * unit(here - centre)
        for centre in blocks:
            point = around(here, point, centre, CLEAR)
        return here + min(1.0, TRAVEL_STEP / max(distance(here, point), 1e-9)) * (point - here)


def around(start: np.ndarray, goal: np.ndarray, obstacle: np.ndarray, radius: float) -> np.ndarray:
    """(2,) `goal`, or if a disc about `obstacle` is in the way, a point from which it is less so.

    That point lies beside the disc, on the side where the straight way passes it, and is found again in every step.
    """
    way = goal - start
    length = float(np.linalg.norm(way))
    if length < 1e-9:
        return goal
    along = way / length
    across = np.array([-along[1], along[0]])
    ahead, aside = float(along @ (obstacle - start)), float(across @ (obstacle - start))
    if not 0 < ahead < length or abs(aside) >= radius:
        return goal
    side = -np.sign(aside) or 1.0
    return obstacle + side * (radius + 0.01) * across


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between two points, or the first two coordinates of two poses."""
    return float(np.hypot(*(a[:2] - b[:2])))


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
