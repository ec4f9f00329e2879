"""robosuite's tasks as gymnasium environments, observed and acted upon as robomimic's image demonstrations are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from unified_video_action.env.robomimic.simulator import STATES, Simulator, environment_arguments
from unified_video_action.rotations import POSE_ACTION, from_pose_actions


class RobomimicEnv(gymnasium.Env):
    """A Panda arm at one of robosuite's tasks.

    Observations: `<camera>_image` uint8 (image_size, image_size, 3) for each camera, `robot0_eef_pos` (3,) in metres,
    `robot0_eef_quat` (4,) in the order x, y, z, w, and `robot0_gripper_qpos` (2,), the fingers in metres; float32.
    Actions: float32 (10,), 20 a second: the position in metres and the 6-D rotation that the hand is drawn to, in the
    world's frame, and the gripper, which closes above 0 and opens below.

    `step` ends the episode on success and reports in its info `is_success` and `score`, which is 1 then and 0 before.
    `reset(seed=...)` draws what Diffusion Policy's evaluation draws for that seed.

    Args:
        task: name of a robosuite environment with one arm: ToolHang, Lift, ...
        cameras: ToolHang's demonstrations have these, those of the other tasks agentview in place of sideview.
        image_size: pixels.
        samples: of each pixel when drawing; 4 is what demonstrations are drawn with, 0 is several times faster
            without a GPU and shows rougher edges.
        observe_images: False leaves the cameras out, for callers that need no frames.

    Raises:
        ValueError: an unknown task or camera, or a size or number of samples out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    render_mode = "rgb_array"

    def __init__(
        self,
        task: str = "ToolHang",
        cameras: Sequence[str] = ("sideview", "robot0_eye_in_hand"),
        image_size: int = 240,
        samples: int = 4,
        observe_images: bool = True,
    ) -> None:
        if not isinstance(image_size, int) or image_size < 8:
            raise ValueError(f"image_size must be at least 8 pixels, got {image_size!r}")
        if not isinstance(samples, int) or samples < 0:
            raise ValueError(f"samples must be 0 or more for each pixel, got {samples!r}")
        self.image_size, self.cameras = image_size, tuple(cameras)
        self.simulator = Simulator(environment_arguments(task, absolute=True), samples)
        unknown = [camera for camera in cameras if camera not in self.simulator.cameras]
        if unknown or not cameras:
            raise ValueError(f"cameras={list(cameras)}: {task} has {', '.join(self.simulator.cameras)}")
        self._drawn = self.cameras if observe_images else ()
        view = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {f"{camera}_image": view for camera in self._drawn}
            | {name: spaces.Box(-np.inf, np.inf, (width,), np.float32) for name, width in STATES.items()}
        )
        self.action_space = spaces.Box(-np.inf, np.inf, (POSE_ACTION,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode; without a seed, one is drawn from the environment's own generator."""
        super().reset(seed=seed)
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; there are none")
        self.simulator.reset(int(self.np_random.integers(2**31)) if seed is None else seed)
        return self._observe(), self._progress()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Draw the hand to `action` (10,) for a twentieth of a second.

        Raises:
            ValueError: an action of another size, with a number that is not finite, or whose rotation is degenerate.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (POSE_ACTION,) or not np.isfinite(action).all():
            raise ValueError(f"action must be {POSE_ACTION} finite numbers, got {action!r}")
        self.simulator.step(from_pose_actions(action))
        info = self._progress()
        return self._observe(), info["score"], info["is_success"], False, info

    def render(self) -> np.ndarray:
        """The first camera's view: uint8 (image_size, image_size, 3)."""
        return self.simulator.frame(self.cameras[0], self.image_size)

    def close(self) -> None:
        self.simulator.close()

    def _observe(self) -> dict[str, np.ndarray]:
        frames = {f"{camera}_image": self.simulator.frame(camera, self.image_size) for camera in self._drawn}
        return frames | self.simulator.robot_states()

    def _progress(self) -> dict[str, Any]:
        success = self.simulator.is_success
        return {"score": float(success), "is_success": success}
