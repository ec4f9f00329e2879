"""robosuite's tasks as gymnasium environments, observed and acted upon as robomimic's image demonstrations are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unified_video_action.env.checking import checked_options
from unified_video_action.env.robomimic.simulator import STATES, Simulator, environment_arguments
from unified_video_action.env.robosuite_arm import ArmEnv


class RobomimicEnv(ArmEnv):
    """A Panda arm at one of robosuite's tasks.

    Observations: `<camera>_image` uint8 (image_size, image_size, 3) for each camera, `robot0_eef_pos` (3,) in metres,
    `robot0_eef_quat` (4,) in the order x, y, z, w, and `robot0_gripper_qpos` (2,), the fingers in metres; float32.
    Actions: float32 (10,), 20 a second: commanded position in metres and 6-D rotation of the end effector, in the
    world's frame, and the gripper, which closes above 0 and opens below.

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

    def __init__(
        self,
        task: str = "ToolHang",
        cameras: Sequence[str] = ("sideview", "robot0_eye_in_hand"),
        image_size: int = 240,
        samples: int = 4,
        observe_images: bool = True,
    ) -> None:
        views = {f"{camera}_image": camera for camera in cameras}
        super().__init__(image_size, samples, views, STATES, observe_images=observe_images)
        self.cameras = tuple(cameras)
        self.simulator = self._scene = Simulator(environment_arguments(task, absolute=True), samples)
        if not cameras or not set(cameras) <= set(self.simulator.cameras):
            raise ValueError(f"cameras={list(cameras)}: {task} has {', '.join(self.simulator.cameras)}")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode; without a seed, one is drawn from the environment's own generator."""
        super().reset(seed=seed)
        checked_options(options)
        self.simulator.reset(int(self.np_random.integers(2**31)) if seed is None else seed)
        return self._look()
