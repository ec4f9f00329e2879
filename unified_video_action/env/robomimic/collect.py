"""Demonstrations of Lift by the scripted expert, one for each attempt number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from unified_video_action.env.robomimic.demonstrations import Demonstration
from unified_video_action.env.robomimic.lift_expert import REACH, LiftExpert, Variety
from unified_video_action.env.robomimic.simulator import Simulator, environment_arguments

CAMERAS = ("agentview", "robot0_eye_in_hand")


@dataclass(frozen=True)
class Collector:
    """Calling it with an attempt number gives that attempt's episode; the same one in any process and any order."""

    seed: int = 0
    image_size: int = 96  # pixels; 0: no frames
    samples: int = 0  # of each pixel when drawing, see `RobomimicEnv`
    delta: bool = False  # actions are steps relative to the hand, as robomimic's own files have them
    max_steps: int = 120
    extra_steps: int = 5  # recorded after the cube is up, where the hand goes on
    variety: Variety = field(default_factory=Variety)

    def __post_init__(self) -> None:
        if self.image_size < 0 or 0 < self.image_size < 8:
            raise ValueError(f"image_size={self.image_size}: expected at least 8 pixels, or 0 for no frames")
        if self.max_steps < 1 or self.extra_steps < 0:
            raise ValueError(f"max_steps={self.max_steps} and extra_steps={self.extra_steps}: expected 1 and 0 or more")

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

    def __call__(self, attempt: int) -> Demonstration | None:
        """The attempt's episode; None where the expert fails."""
        start_seed, expert_seed = (int(n) for n in np.random.default_rng([self.seed, attempt]).integers(2**31, size=2))
        simulator, expert = self.simulator, LiftExpert(expert_seed, self.variety)
        simulator.reset(start_seed)
        # The recorded start is rounded nowhere: from it, the same actions lead to the same states.
        simulator.restore(simulator.state)
        states, actions, success, seen = [], [], [], []
        while len(actions) < self.max_steps and sum(success) <= self.extra_steps:
            goal = expert.act(simulator)
            states.append(simulator.state)
            actions.append(self._step_towards(goal) if self.delta else goal)
            seen.append(observe(simulator, CAMERAS if self.image_size else (), self.image_size))
            simulator.step(actions[-1])
            success.append(simulator.is_success)
        if not any(success):
            return None
        obs = {name: np.stack([one[name] for one in seen]) for name in seen[0]}
        model = simulator.model_xml()
        return Demonstration(model, np.array(states), np.array(actions), obs, np.array(success))

    def _step_towards(self, goal: np.ndarray) -> np.ndarray:
        """The relative action (7,) that says the same as an absolute one."""
        position, rotation = self.simulator.hand_pose()
        turn = (Rotation.from_rotvec(goal[3:6]) * Rotation.from_matrix(rotation).inv()).as_rotvec()
        step = np.concatenate([(goal[:3] - position) / REACH[0], turn / REACH[1]])
        return np.append(np.clip(step, -1, 1), goal[6])


def observe(simulator: Simulator, cameras: tuple[str, ...], size: int) -> dict[str, np.ndarray]:
    """What robomimic stores of a moment: `<camera>_image` (size, size, 3), and every number that robosuite observes."""
    return {f"{camera}_image": simulator.frame(camera, size) for camera in cameras} | simulator.low_dim()
