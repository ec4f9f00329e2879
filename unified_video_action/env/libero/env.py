"""LIBERO's tasks as one gymnasium environment, whose seeds run through tasks and stored start states."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from unified_video_action.env.checking import check_count, checked_options
from unified_video_action.env.libero.installation import cache_folder, find_assets, load_suite
from unified_video_action.env.libero.scene import CAMERAS, STATES, Scene
from unified_video_action.env.robosuite_arm import ArmEnv
from unified_video_action.rotations import AXIS_ANGLE_ACTION, POSE_ACTION

CONTROLS = {"absolute": POSE_ACTION, "relative": AXIS_ANGLE_ACTION}
STATES_PER_TASK = 50  # that LIBERO stores, and its benchmark uses
INSTRUCTION = spaces.Text(400, charset=string.printable)


class LiberoEnv(ArmEnv):
    """A Panda arm that follows instructions.

    Observations: `agentview_rgb` and, with `wrist`, `eye_in_hand_rgb` uint8 (image_size, image_size, 3), as a person
    sees them; `ee_pos` (3,) in metres, `ee_rotation` (6,), `gripper_qpos` (2,), the fingers in metres, float32; and
    `instruction`, a string. Actions, 20 a second, float32: absolute ones (10,) are the commanded position in metres and
    6-D rotation of the end effector, in the world's frame, and the gripper, -1 open and 1 closed (only the sign
    counts); relative ones (7,) are LIBERO's own, steps in shares of 5 cm and 0.5 rad, and the same gripper.

    `reset(seed=...)` starts episode `seed` modulo n x 50, of n tasks with 50 stored start states each: task k modulo n
    from state k // n. So 500 consecutive seeds of libero_10 are its whole benchmark, and however many of the first
    ones are taken, every task has the same number of them, give or take one. `reset(options={"task": t, "state": s})`
    starts a certain one. After `settle_steps` steps without a command objects are at rest, and the episode begins.

    The info of a step also has `task`, LIBERO's name of the task.

    The scene is built again whenever the task changes: some seconds. A process holds one, and needs about 2 GB.

    Options are described in config/task/libero10.yaml; 10 `settle_steps` are what others use, and frames that are
    `mirrored` are those of openpi and LeRobot (turned by 180 degrees, they are upright but mirrored).

    Raises ValueError for a value outside of these, FileNotFoundError without assets that can be found or downloaded.
    """

    def __init__(
        self,
        suite: str = "libero_10",
        tasks: Sequence[int] | None = None,
        assets: str | None = None,
        cache_dir: str | None = None,
        image_size: int = 128,
        wrist: bool = False,
        mirrored: bool = False,
        control: str = "absolute",
        settle_steps: int = 10,
        samples: int = 4,
        observe_images: bool = True,
    ) -> None:
        if control not in CONTROLS:
            raise ValueError(f"control={control!r}: expected {' or '.join(CONTROLS)}")
        check_count("settle_steps", settle_steps, 0)
        views = dict(list(CAMERAS.items())[: 1 + wrist])
        super().__init__(image_size, samples, views, STATES, CONTROLS[control], observe_images)
        self.observation_space["instruction"] = INSTRUCTION
        suite_tasks = load_suite(suite)
        numbers = list(range(len(suite_tasks)) if tasks is None else tasks)
        if not numbers or not all(isinstance(task, int) and 0 <= task < len(suite_tasks) for task in numbers):
            raise ValueError(f"tasks={tasks!r}: expected numbers from 0 to {len(suite_tasks) - 1}, or null for all")
        self.tasks = tuple(suite_tasks[number] for number in numbers)
        self.cache = cache_folder(cache_dir)
        self.assets = find_assets(assets, self.cache)
        self.control, self.settle_steps, self.mirrored = control, settle_steps, mirrored
        self._starts: np.ndarray | None = None  # (n, S) of the scene's task

    def start_of(self, seed: int) -> tuple[int, int]:
        """(task, start state) of a seed; the task is an index into `self.tasks`."""
        episode = seed % (len(self.tasks) * STATES_PER_TASK)
        return episode % len(self.tasks), episode // len(self.tasks)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode; without a seed, one is drawn from the environment's own generator."""
        super().reset(seed=seed)
        options = checked_options(options, ("task", "state"))
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        task, state = (options.get(name, drawn) for name, drawn in zip(("task", "state"), self.start_of(episode)))
        if not 0 <= task < len(self.tasks) or not 0 <= state < STATES_PER_TASK:
            raise ValueError(
                f"reset options task={task}, state={state}: there are {len(self.tasks)} tasks of {STATES_PER_TASK} "
                "start states"
            )
        scene = self._built(task)
        # Fixtures stand a little elsewhere in every episode: the same in every run through the benchmark.
        scene.reset(seed=state * len(self.tasks) + task, state=self._starts[state])
        scene.settle(self.settle_steps)
        scene.relative = self.control == "relative"
        return self._look()

    def _built(self, number: int) -> Scene:
        task = self.tasks[number]
        if self._scene is None or self._scene.task != task:
            self.close()
            self._starts = task.start_states()
            if len(self._starts) != STATES_PER_TASK:
                raise ValueError(f"{task.starts} holds {len(self._starts)} start states, expected {STATES_PER_TASK}")
            self._scene = Scene(task, self.assets, self.cache, self.samples)
        return self._scene

    def _frame(self, view: str) -> np.ndarray:
        frame = super()._frame(view)
        return np.ascontiguousarray(frame[:, ::-1]) if self.mirrored else frame

    def _look(self) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = super()._look()
        task = self._scene.task
        return observation | {"instruction": task.instruction}, info | {"task": task.name}
