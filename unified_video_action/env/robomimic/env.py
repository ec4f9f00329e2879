"""robosuite's tasks with one arm: a simulator that starts, restores and looks at episodes, and a gymnasium environment
that is observed and acted upon as robomimic's image demonstrations are.

robosuite is used directly. robomimic's wrapper of it imports mujoco_py, which is abandoned, and keeps what it gives
out in global tables. It adds little, upright images and states that can be restored: a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unified_video_action.env.checking import checked_options
from unified_video_action.env.robosuite_arm import CONTROL_FREQUENCY, SETTINGS, ArmEnv, RobosuiteArm, numpy_seed
from unified_video_action.env.system_libraries import explain_missing_libraries

with explain_missing_libraries():
    import mujoco
    import robosuite
    from robosuite import load_controller_config
    from robosuite.environments.base import REGISTERED_ENVS

ROBOSUITE_TYPE = 1  # robomimic's number for robosuite environments
STATES = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}  # metres; x, y, z, w; metres
MODEL_SEED = 0  # of what robosuite draws when it makes a model, such as the size of Lift's cube


def environment_arguments(task: str, absolute: bool) -> dict[str, Any]:
    """What robomimic calls env_args: a Panda arm under the controller of the published demonstrations.

    Actions are `absolute` poses in the world's frame, or steps in shares of 5 cm and 0.5 rad.
    """
    kwargs = {
        "robots": ["Panda"],
        "controller_configs": load_controller_config(default_controller="OSC_POSE") | {"control_delta": not absolute},
        "control_freq": CONTROL_FREQUENCY,
        "use_object_obs": True,
        "reward_shaping": False,
    }
    return {"env_name": task, "env_version": robosuite.__version__, "type": ROBOSUITE_TYPE, "env_kwargs": kwargs}


def with_controller(arguments: Mapping[str, Any], absolute: bool) -> dict[str, Any]:
    """The same env_args with a controller that takes absolute actions, or steps."""
    kwargs = dict(arguments["env_kwargs"])
    kwargs["controller_configs"] = {**kwargs["controller_configs"], "control_delta": not absolute}
    return {**arguments, "env_kwargs": kwargs}


class Simulator(RobosuiteArm):
    """A robosuite environment with one arm.

    Args:
        arguments: env_args of a robomimic file, or `environment_arguments`.
        samples: of each pixel when drawing; 4 is robosuite's, 0 is several times faster without a GPU.

    Raises ValueError where robosuite has no such environment, or it does not take these arguments.
    """

    def __init__(self, arguments: Mapping[str, Any], samples: int = 4) -> None:
        task = arguments["env_name"]
        if task not in REGISTERED_ENVS:
            raise ValueError(f"task={task!r}: robosuite knows {', '.join(sorted(REGISTERED_ENVS))}")
        self.samples = samples
        own = {name: value for name, value in arguments["env_kwargs"].items() if not name.startswith("camera_")}
        own |= {**SETTINGS, "control_freq": own.get("control_freq", CONTROL_FREQUENCY), "has_renderer": False}
        with numpy_seed(MODEL_SEED):
            try:
                self._env = robosuite.make(task, **own)
            except TypeError as error:
                raise ValueError(f"env_kwargs of another robosuite than {robosuite.__version__}: {error}") from error
        self._model: str | None = None  # the recorded model that is loaded; None: robosuite's own

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` decides: poses of the objects, noise on the arm's joints."""
        if self._model is not None:
            self._make_current()
            with numpy_seed(MODEL_SEED):  # as in __init__
                self._env.hard_reset = True
                self._env.reset()
                self._env.hard_reset = False
            self._model = None
        with numpy_seed(seed):  # robosuite draws from numpy's global generator
            self._env.reset()

    def restore(self, state: np.ndarray, model: str | None = None) -> None:
        """Go on from a recorded state (S,) as if the episode had begun there, with the `model` (XML) of the recording;
        None: the one that was loaded last.

        Raises ValueError for a model that this MuJoCo cannot read, or a state of another size.
        """
        if model is not None and model != self._model:
            self._load(model)
        self._env.deterministic_reset = True  # nothing is drawn
        self._env.reset()
        self._env.deterministic_reset = False
        self.show(state)
        robot = self._env.robots[0]  # its controller pulls the elbow to where the joints were at the start
        robot.controller.update_initial_joints(self._env.sim.data.qpos[robot._ref_joint_pos_indexes])

    def model_xml(self) -> str:
        """What the loaded model was made from; not what MuJoCo would save, which is the last model of the process."""
        return self._env.model.get_xml() if self._model is None else self._model

    def low_dim(self) -> dict[str, np.ndarray]:
        """Every number that robosuite observes, float64: `robot0_eef_pos` (3,), `object` and so on."""
        seen = self._env._get_observations(force_update=True)
        named = {name: value for name, value in seen.items() if not name.endswith("-state")}
        if "object-state" in seen:
            named["object"] = seen["object-state"]
        return {name: np.array(np.atleast_1d(value), np.float64) for name, value in named.items()}

    def robot_states(self) -> dict[str, np.ndarray]:
        """`STATES`, float32."""
        seen = self.low_dim()
        return {name: seen[name].astype(np.float32) for name in STATES}

    def observe(self, cameras: Sequence[str], size: int) -> dict[str, np.ndarray]:
        """What robomimic stores of a moment: `<camera>_image` (size, size, 3), and every number of `low_dim`."""
        return {f"{camera}_image": self.frame(camera, size) for camera in cameras} | self.low_dim()

    def body_pose(self, body: str) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and rotation matrix (3, 3) of a body of the model."""
        data = self._env.sim.data
        return np.array(data.get_body_xpos(body)), np.array(data.get_body_xmat(body)).reshape(3, 3)

    def _load(self, model: str) -> None:
        self._make_current()
        try:
            edited = self._env.edit_model_xml(model)  # the meshes lie elsewhere on every machine
            self._env.hard_reset = True  # deterministic, yet its sensors must look at the new model
            self._env.reset_from_xml_string(edited)
        except Exception as error:  # whatever an XML of another version makes them raise
            raise ValueError(
                f"MuJoCo {mujoco.__version__} cannot load the recorded model: {error}; --own-model does without"
            ) from error
        finally:
            self._env.hard_reset = False
        self._model = model


class RobomimicEnv(ArmEnv):
    """A Panda arm at one of robosuite's tasks.

    Observations: `<camera>_image` uint8 (image_size, image_size, 3) for each camera, `robot0_eef_pos` (3,) in metres,
    `robot0_eef_quat` (4,) in the order x, y, z, w, and `robot0_gripper_qpos` (2,), the fingers in metres; float32.
    Actions: float32 (10,), 20 a second: commanded position in metres and 6-D rotation of the end effector, in the
    world's frame, and the gripper, which closes above 0 and opens below.

    `reset(seed=...)` draws what Diffusion Policy's evaluation draws for that seed. Options are described in
    config/task/toolhang.yaml; the other tasks' demonstrations have the camera agentview in place of sideview.

    Raises ValueError for an unknown task or camera, or a size or number of samples out of range.
    """

    def __init__(
        self,
        task: str = "ToolHang",
        cameras: Sequence[str] = ("sideview", "robot0_eye_in_hand"),
        image_size: int = 240,
        samples: int = 4,
        observe_images: bool = True,  # False leaves the cameras out, for callers that need no frames
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
