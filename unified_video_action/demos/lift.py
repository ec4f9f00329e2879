"""A scripted expert for Lift: above the cube, down, close, up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from unified_video_action.env.robomimic.simulator import Simulator

CUBE = "cube_main"  # robosuite's name of the body
POINTING_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # the hand, fingers along the world's y
REACH = 0.05, 0.5  # metres and radians that an action may lie ahead of the hand: what a relative action can say
NEAR, ALIGNED = 0.01, 0.1  # metres and radians within which a move counts as made
CLOSING_STEPS = 8
OPEN, CLOSED = -1.0, 1.0


@dataclass(frozen=True)
class Variety:
    """How much episodes differ beyond where the cube lies."""

    drift: float = 0.003  # metres, standard deviation of a slow drift of the targets
    slowest: float = 0.6  # an episode's speed is a share of the fastest, from this to 1

    def __post_init__(self) -> None:
        if not 0 <= self.drift <= 0.01:
            raise ValueError(f"drift={self.drift}: expected 0 to 0.01 metres; the cube is 4 cm wide")
        if not 0.2 <= self.slowest <= 1:
            raise ValueError(f"slowest={self.slowest}: expected a share from 0.2 to 1")


class LiftExpert:
    """Chooses one action after the other from what the simulator's state is; one object for each episode.

    Args:
        seed: of everything that it does at random.
    """

    def __init__(self, seed: int, variety: Variety = Variety()) -> None:
        self._rng, self._drift_size = np.random.default_rng(seed), variety.drift
        self._speed = self._rng.uniform(variety.slowest, 1)
        self._hover = self._rng.uniform(0.05, 0.09)  # metres above the cube
        self._depth = self._rng.uniform(-0.008, 0.004)  # metres of the grip above the cube's centre
        self._drift = np.zeros(3)
        self._moves = [self._above, self._down, self._close, self._up]
        self._closed_for = 0

    def act(self, simulator: Simulator) -> np.ndarray:
        """Action (7,): position, axis-angle, gripper."""
        hand, cube = simulator.hand_pose(), simulator.body_pose(CUBE)
        self._drift = 0.9 * self._drift + np.sqrt(1 - 0.9**2) * self._rng.normal(0, self._drift_size, 3)
        while True:
            goal, gripper, done = self._moves[0](hand, cube)
            if not done:
                return self._ahead(hand, goal, _grip(cube[1]), gripper)
            self._moves.pop(0)

    def _above(self, hand: tuple, cube: tuple) -> tuple[np.ndarray, float, bool]:
        goal = cube[0] + [0, 0, self._hover] + self._drift
        turn = Rotation.from_matrix(_grip(cube[1]) @ hand[1].T).magnitude()
        return goal, OPEN, bool(np.linalg.norm(goal - hand[0]) < NEAR + self._hover / 4 and turn < ALIGNED)

    def _down(self, hand: tuple, cube: tuple) -> tuple[np.ndarray, float, bool]:
        goal = cube[0] + [0, 0, self._depth] + self._drift * [1, 1, 0]
        return goal, OPEN, bool(np.linalg.norm(goal - hand[0]) < NEAR)

    def _close(self, hand: tuple, cube: tuple) -> tuple[np.ndarray, float, bool]:
        self._closed_for += 1
        return cube[0] + [0, 0, self._depth], CLOSED, self._closed_for > CLOSING_STEPS

    def _up(self, hand: tuple, cube: tuple) -> tuple[np.ndarray, float, bool]:
        return hand[0] + [*self._drift[:2], 0.05], CLOSED, False

    def _ahead(self, hand: tuple, goal: np.ndarray, rotation: np.ndarray, gripper: float) -> np.ndarray:
        """The point on the way to a pose that lies one action ahead of the hand."""
        way = goal - hand[0]
        way *= min(1.0, self._speed * REACH[0] / max(np.linalg.norm(way), 1e-9))
        turn = Rotation.from_matrix(rotation @ hand[1].T).as_rotvec()
        turn *= min(1.0, self._speed * REACH[1] / max(np.linalg.norm(turn), 1e-9))
        ahead = Rotation.from_rotvec(turn) * Rotation.from_matrix(hand[1])
        return np.concatenate([hand[0] + way, ahead.as_rotvec(), [gripper]])


def _grip(cube: np.ndarray) -> np.ndarray:
    """The hand's rotation (3, 3) that takes the cube by two faces, turned by no more than 45 degrees."""
    yaw = np.arctan2(cube[1, 0], cube[0, 0])
    yaw = (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4
    return Rotation.from_euler("z", yaw).as_matrix() @ POINTING_DOWN
