"""A robosuite task with one arm, as robomimic's tasks and LIBERO's both are: its state, its views, its controller, and
the gymnasium side of it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from scipy.spatial.transform import Rotation

from unified_video_action.env.checking import check_count, checked_vector
from unified_video_action.env.system_libraries import explain_missing_libraries, prepare_rendering
from unified_video_action.rotations import POSE_ACTION, from_pose_actions

advice = logging.getLogger("robosuite_logs")  # it recommends a private settings file to everyone who imports it
level = advice.level
advice.setLevel(logging.ERROR)
with explain_missing_libraries():
    prepare_rendering()
    import mujoco
    import robosuite  # noqa: F401
    from robosuite.utils.binding_utils import MjRenderContextOffscreen
advice.setLevel(level)

CONTROL_FREQUENCY = 20  # Hz
# Frames are drawn on demand, see `frame`. A soft reset keeps the model, as Diffusion Policy's evaluation does:
# milliseconds in place of seconds, and an episode is a function of its seed alone.
SETTINGS = {
    "control_freq": CONTROL_FREQUENCY,
    "has_offscreen_renderer": False,
    "use_camera_obs": False,
    "ignore_done": True,
    "hard_reset": False,
}


class RobosuiteArm:
    """What both simulators do with a robosuite environment, which a subclass makes as `_env`."""

    _env: Any
    samples: int  # of each pixel when drawing

    def show(self, state: np.ndarray) -> None:
        """Put every joint where a recorded state (S,) has it. Raises ValueError for a state of another size."""
        sim = self._env.sim
        size = 1 + sim.model.nq + sim.model.nv
        if np.shape(state) != (size,):
            raise ValueError(f"a state of {np.shape(state)} numbers does not fit the model, which has {size}")
        sim.set_state_from_flattened(np.asarray(state, np.float64))
        sim.forward()

    def step(self, action: np.ndarray) -> None:
        """A twentieth of a second under `action` (7,): position, axis-angle, gripper (1 closes, -1 opens).

        Absolute: the commanded pose of the end effector, metres and radians in the world's frame. Relative: steps from
        where it is, in shares of 5 cm and 0.5 rad, cut to [-1, 1].
        """
        self._env.step(np.asarray(action, np.float64))
        model, data = self._env.sim.model._model, self._env.sim.data._data
        mujoco.mj_kinematics(model, data)  # MuJoCo leaves what is seen as it was before the last of its substeps
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)

    def close(self) -> None:
        self._make_current()
        self._env.close()

    @property
    def is_success(self) -> bool:
        return bool(self._env._check_success())

    @property
    def relative(self) -> bool:
        """Whether actions are steps, or poses; a reset sets it again."""
        return self._env.robots[0].controller.use_delta

    @relative.setter
    def relative(self, value: bool) -> None:
        self._env.robots[0].controller.use_delta = value

    @property
    def state(self) -> np.ndarray:
        """(S,) time, positions and velocities of all joints: float64."""
        return self._env.sim.get_state().flatten()

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self._env.sim.model.camera_names)

    def frame(self, camera: str, size: int) -> np.ndarray:
        """What a camera sees now: uint8 (size, size, 3), upright and not mirrored. Raises ValueError for an unknown
        camera."""
        sim = self._env.sim
        if camera not in self.cameras:
            raise ValueError(f"camera {camera!r}: {self._env.__class__.__name__} has {', '.join(self.cameras)}")
        if sim._render_context_offscreen is None:
            sim.model.vis.quality.offsamples = self.samples
            context = MjRenderContextOffscreen(sim, device_id=-1)  # hangs itself into sim
            context.vopt.geomgroup[0], context.vopt.geomgroup[1] = 0, 1  # visual shapes, not those of collisions
        self._make_current()
        image = sim.render(width=size, height=size, camera_name=camera)
        return np.ascontiguousarray(image[::-1])  # OpenGL's first row is the lowest

    def end_effector_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and rotation matrix (3, 3) of the end effector, in the frame of absolute actions."""
        data, site = self._env.sim.data, self._env.robots[0].eef_site_id
        return np.array(data.site_xpos[site]), np.array(data.site_xmat[site]).reshape(3, 3)

    def absolute_actions(self, states: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The poses (T, 7) that recorded steps (T, 7) commanded, as the controller understands them.

        Each is asked for in its recorded state (T, S), so nothing drifts from the recording; and in their order: a step
        without a turn keeps the goal that the last turn had.
        """
        self.relative = True
        found = []
        for state, step in zip(states, steps, strict=True):
            self.show(state)
            controller = self._env.robots[0].controller
            controller.update(force=True)
            controller.set_goal(np.asarray(step, np.float64)[:6])
            turn = Rotation.from_matrix(controller.goal_ori).as_rotvec()
            found.append(np.concatenate([controller.goal_pos, turn, step[6:]]))
        return np.stack(found)

    def _make_current(self) -> None:
        """What is drawn, or freed, is this simulator's: another one in this process may have drawn last."""
        context = self._env.sim._render_context_offscreen
        if context is not None:
            context.gl_ctx.make_current()
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context.con)


class ArmEnv(gymnasium.Env, ABC):
    """The gymnasium side of a `RobosuiteArm`, which a subclass makes as `_scene` and starts in `reset`.

    `step` ends the episode on success and reports in its info `is_success` and `score`, which is 1 then and 0 before.

    Args:
        views: name of each frame among the observations, and the camera that sees it.
        states: names and sizes of the other observations.
        action_size: POSE_ACTION for absolute actions, else that of the simulator's own steps.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_FREQUENCY}
    render_mode = "rgb_array"
    _scene: Any = None

    def __init__(
        self,
        image_size: int,
        samples: int,
        views: Mapping[str, str],
        states: Mapping[str, int],
        action_size: int = POSE_ACTION,
        observe_images: bool = True,
    ) -> None:
        check_count("image_size", image_size, 8)
        check_count("samples", samples, 0)
        self.image_size, self.samples, self._views = image_size, samples, dict(views)
        self._drawn = tuple(views) if observe_images else ()
        view = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {name: view for name in self._drawn}
            | {name: spaces.Box(-np.inf, np.inf, (width,), np.float32) for name, width in states.items()}
        )
        self.action_space = spaces.Box(-np.inf, np.inf, (action_size,), np.float32)

    @abstractmethod
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode, see `gymnasium.Env.reset`, which seeds the generator here."""
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Act for a twentieth of a second. Raises ValueError for an action of another size, with a number that is
        not finite, or whose rotation is degenerate."""
        action = checked_vector("action", action, self.action_space.shape[0])
        self._scene.step(from_pose_actions(action) if len(action) == POSE_ACTION else action)
        observation, info = self._look()
        return observation, info["score"], info["is_success"], False, info

    def render(self) -> np.ndarray:
        """The first view: uint8 (image_size, image_size, 3)."""
        return self._frame(next(iter(self._views)))

    def close(self) -> None:
        if self._scene is not None:
            self._scene.close()
        self._scene = None

    def _frame(self, view: str) -> np.ndarray:
        return self._scene.frame(self._views[view], self.image_size)

    def _look(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The observation and the info of now."""
        success = self._scene.is_success
        frames = {view: self._frame(view) for view in self._drawn}
        return frames | self._scene.robot_states(), {"score": float(success), "is_success": success}


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """numpy's global generator, which robosuite draws from, starts at `seed` here and is put back afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
