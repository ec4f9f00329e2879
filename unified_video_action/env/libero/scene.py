"""One LIBERO task, built in robosuite: start from a state, step, look. Building it takes seconds and a gigabyte."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from unified_video_action.env.libero.installation import Task, load
from unified_video_action.env.robosuite_arm import SETTINGS, RobosuiteArm, numpy_seed
from unified_video_action.env.system_libraries import explain_missing_libraries
from unified_video_action.rotations import matrix_to_6d

with explain_missing_libraries():
    from robosuite import load_controller_config
    from robosuite.utils.errors import RandomizationError

CAMERAS = {"agentview_rgb": "agentview", "eye_in_hand_rgb": "robot0_eye_in_hand"}  # LIBERO's data -> simulator
STATES = {"ee_pos": 3, "ee_rotation": 6, "gripper_qpos": 2}  # metres; 6-D; metres
NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])  # of relative control: stay, with the gripper open


class Scene(RobosuiteArm):
    """A task's simulator, kept from episode to episode; `assets` and `cache` as in `installation.load`.

    LIBERO's own observations and files are upside down. Turning those by 180 degrees, as openpi does, shows the scene
    upright but mirrored; in `frame` left and right are true.

    Raises FileNotFoundError where an asset that the task needs is missing.
    """

    def __init__(self, task: Task, assets: Path, cache: Path, samples: int = 4) -> None:
        envs = load(assets, cache)
        self.task, self.samples = task, samples
        problem = envs.bddl_base_domain.BDDLUtils.get_problem_info(str(task.bddl))["problem_name"]
        try:
            # What cannot be seen in a state is drawn at random while a scene is built; reset() draws it again.
            with contextlib.redirect_stdout(io.StringIO()), numpy_seed(0):
                self._env = envs.TASK_MAPPING[problem](
                    bddl_file_name=str(task.bddl),
                    robots=["Panda"],
                    controller_configs=load_controller_config(default_controller="OSC_POSE"),
                    initialization_noise=None,
                    **SETTINGS,  # a hard reset would also add to the lists of what is drawn at random, every time
                )
        except (FileNotFoundError, OSError, ValueError) as error:  # MuJoCo raises ValueError for a missing mesh
            raise FileNotFoundError(
                f"LIBERO's task {task.name} cannot be built from the assets in {assets}: {error}. If they are those of "
                "another suite, name a complete folder with task.env.assets=PATH"
            ) from error
        for name in list(self._env._observables):
            self._env.modify_observable(name, "enabled", False)  # this class looks for itself
        self._site_colours = np.array(self._env.sim.model.site_rgba)

    def reset(self, seed: int, state: np.ndarray) -> None:
        """Start an episode from a stored state (S,); `seed` decides where fixtures stand, which is not part of it."""
        # Showing and hiding sites, such as the glow of a stove, leaves traces in their colours that would add up.
        self._env.sim.model.site_rgba[:] = self._site_colours
        with numpy_seed(seed):  # LIBERO draws from numpy's global generator
            while True:
                try:
                    self._env.reset()
                    break
                except RandomizationError:  # no free position was found for an object: sample again, as LIBERO does
                    continue
        self.relative = True
        self.show(state)

    def show(self, state: np.ndarray) -> None:
        super().show(state)
        self._env._post_process()  # a stove that is on glows

    def settle(self, steps: int) -> None:
        """After a reset, let objects come to rest while the arm stays and opens its gripper."""
        for _ in range(steps):
            self.step(NO_OP)

    def robot_states(self) -> dict[str, np.ndarray]:
        """`STATES`, float32: position and rotation of the end effector (the frame of the actions), and its fingers."""
        position, rotation = self.end_effector_pose()
        robot, data = self._env.robots[0], self._env.sim.data
        values = {
            "ee_pos": position,
            "ee_rotation": matrix_to_6d(rotation),
            "gripper_qpos": data.qpos[robot._ref_gripper_joint_pos_indexes],
        }
        return {name: np.array(value, np.float32) for name, value in values.items()}

    def restore(self, state: np.ndarray, fixtures: Mapping[str, tuple[np.ndarray, np.ndarray]], gripper: float) -> None:
        """Go on from a recorded state (S,) in the middle of an episode.

        Args:
            fixtures: name of a body -> position (3,) and quaternion (4,) of those that no joint moves.
            gripper: command (-1 opens, 1 closes) that the gripper has followed for long: how far it has come is not
                part of a state.
        """
        self.reset(0, state)
        model = self._env.sim.model
        for name, (position, quaternion) in fixtures.items():
            body = model.body_name2id(name)
            model.body_pos[body], model.body_quat[body] = position, quaternion
        self.show(state)
        robot = self._env.robots[0]
        robot.gripper.current_action = np.array([-1.0, 1.0]) * np.sign(gripper)
        robot.controller.update(force=True)
        robot.controller.reset_goal()

    def fixture_bodies(self) -> tuple[str, ...]:
        """Bodies of the fixtures, whose positions are sampled for every episode and are not part of a state."""
        return tuple(fixture.root_body for fixture in self._env.fixtures_dict.values())
