"""A scripted expert for Lift: above the cube, down, close, up; its demonstrations are in robomimic's HDF5 format."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from unified_video_action.demos.collecting import Attempt, option
from unified_video_action.demos.collecting import Collector as BaseCollector
from unified_video_action.env.robomimic.demonstrations import Demonstration, new_file
from unified_video_action.env.robomimic.env import Simulator, environment_arguments

CAMERAS = ("agentview", "robot0_eye_in_hand")
CUBE = "cube_main"  # robosuite's name of the body
POINTING_DOWN = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])  # the end effector, fingers along the world's y
REACH = 0.05, 0.5  # metres and radians that an action may lie ahead of the end effector: what a relative action can say
NEAR, ALIGNED = 0.01, 0.1  # metres and radians within which a move counts as made
CLOSING_STEPS = 8
MAX_STEPS, EXTRA_STEPS = 120, 5  # control steps of an attempt; and recorded after the cube is up
DRIFT, SLOWEST = 0.003, 0.6  # metres, standard deviation of the targets' slow drift; least share of the fastest speed
OPEN, CLOSED = -1.0, 1.0


@dataclass(frozen=True)
class Collector(BaseCollector):
    """Lift's episodes, one per attempt number."""

    seed: int = option(0, "decides starts and the expert's choices")
    image_size: int = option(96, "pixels; 0: no frames, render_robomimic.py draws them later")
    samples: int = option(0, "of each pixel: 0 (fast) or 4 (smooth edges)")
    delta: bool = option(False, "actions as steps, which is how robomimic records them")

    def __post_init__(self) -> None:
        if self.image_size != 0 and self.image_size < 8:
            raise ValueError(f"image_size={self.image_size}: expected at least 8 pixels, or 0 for no frames")

    @contextlib.contextmanager
    def writer(self, output: Path, task: str) -> Iterator[Callable[[Demonstration], None]]:
        with new_file(output, self.arguments) as writer:
            yield writer.append

    @property
    def arguments(self) -> dict[str, Any]:
        """env_args of the file."""
        arguments = environment_arguments("Lift", absolute=not self.delta)
        if self.image_size:
            size = {"camera_heights": self.image_size, "camera_widths": self.image_size}
            arguments["env_kwargs"] |= {"camera_names": list(CAMERAS), **size}
        return arguments

    @cached_property
    def simulator(self) -> Simulator:
        """Made when it is first needed."""
        return Simulator(self.arguments, self.samples)

    def __getstate__(self) -> Mapping[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "simulator"}

    def __call__(self, attempt: int) -> Attempt:
        start_seed, expert_seed = (int(n) for n in np.random.default_rng([self.seed, attempt]).integers(2**31, size=2))
        simulator, expert = self.simulator, LiftExpert(expert_seed)
        simulator.reset(start_seed)
        # The recorded start is rounded nowhere: from it, the same actions lead to the same states.
        simulator.restore(simulator.state)
        states, actions, success, seen = [], [], [], []
        while len(actions) < MAX_STEPS and sum(success) <= EXTRA_STEPS:
            goal = expert.act(simulator)
            states.append(simulator.state)
            actions.append(self._step_towards(goal) if self.delta else goal)
            seen.append(simulator.observe(CAMERAS if self.image_size else (), self.image_size))
            simulator.step(actions[-1])
            success.append(simulator.is_success)
        if not any(success):
            return Attempt(success=False)
        obs = {name: np.stack([one[name] for one in seen]) for name in seen[0]}
        episode = Demonstration(simulator.model_xml(), np.array(states), np.array(actions), obs, np.array(success))
        return Attempt(True, {"steps": len(actions)}, episode)

    def _step_towards(self, goal: np.ndarray) -> np.ndarray:
        """The relative action (7,) for an absolute one."""
        position, rotation = self.simulator.end_effector_pose()
        turn = (Rotation.from_rotvec(goal[3:6]) * Rotation.from_matrix(rotation).inv()).as_rotvec()
        step = np.concatenate([(goal[:3] - position) / REACH[0], turn / REACH[1]])
        return np.append(np.clip(step, -1, 1), goal[6])


class LiftExpert:
    """Chooses one action after the other from what the simulator's state is; one object for each episode."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._speed = self._rng.uniform(SLOWEST, 1)
        self._hover = self._rng.uniform(0.05, 0.09)  # metres above the cube
        self._depth = self._rng.uniform(-0.008, 0.004)  # metres of the grip above the cube's centre
        self._drift = np.zeros(3)
        self._moves = [self._above, self._down, self._close, self._up]
        self._closed_for = 0

    def act(self, simulator: Simulator) -> np.ndarray:
        """Action (7,): position, axis-angle, gripper."""
        effector, cube = simulator.end_effector_pose(), simulator.body_pose(CUBE)
        self._drift = 0.9 * self._drift + np.sqrt(1 - 0.9**2) * self._rng.normal(0, DRIFT, 3)
        while True:
            goal, gripper, done = self._moves[0](effector, cube)
            if not done:
                return self._ahead(effector, goal, _grip(cube[1]), gripper)
            self._moves.pop(0)

    def _above(self, effector: tuple, cube: tuple) -> tuple[np.ndarray, float, bool]:
        goal = cube[0] + [0, 0, self._hover] + self._drift
        turn = Rotation.from_matrix(_grip(cube[1]) @ effector[1].T).magnitude()
        return goal, OPEN, bool(np.linalg.norm(goal - effector[0]) < NEAR + self._hover / 4 and turn < ALIGNED)

    def _down(self, effector: tuple, cube: tuple) -> tuple[np.ndarray, float, bool]:
        goal = cube[0] + [0, 0, self._depth] + self._drift * [1, 1, 0]
        return goal, OPEN, bool(np.linalg.norm(goal - effector[0]) < NEAR)

    def _close(self, effector: tuple, cube: tuple) -> tuple[np.ndarray, float, bool]:
        self._closed_for += 1
        return cube[0] + [0, 0, self._depth], CLOSED, self._closed_for > CLOSING_STEPS

    def _up(self, effector: tuple, cube: tuple) -> tuple[np.ndarray, float, bool]:
        return effector[0] + [*self._drift[:2], 0.05], CLOSED, False

    def _ahead(self, effector: tuple, goal: np.ndarray, rotation: np.ndarray, gripper: float) -> np.ndarray:
        """The point on the way to a pose that lies one action ahead of the end effector."""
        way = goal - effector[0]
        way *= min(1.0, self._speed * REACH[0] / max(np.linalg.norm(way), 1e-9))
        turn = Rotation.from_matrix(rotation @ effector[1].T).as_rotvec()
        turn *= min(1.0, self._speed * REACH[1] / max(np.linalg.norm(turn), 1e-9))
        ahead = Rotation.from_rotvec(turn) * Rotation.from_matrix(effector[1])
        return np.concatenate([effector[0] + way, ahead.as_rotvec(), [gripper]])


def _grip(cube: np.ndarray) -> np.ndarray:
    """The end effector's rotation (3, 3) that takes the cube by two faces, turned by no more than 45 degrees."""
    yaw = np.arctan2(cube[1, 0], cube[0, 0])
    yaw = (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4
    return Rotation.from_euler("z", yaw).as_matrix() @ POINTING_DOWN
