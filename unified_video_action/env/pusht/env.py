"""PushT as a gymnasium environment: gym-pusht with seeds, goals and observations as the demonstrations have them; and
frames of given states."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from gymnasium import spaces

from unified_video_action.env.checking import check_count, checked_options, checked_vector
from unified_video_action.env.pusht.disturbances import Disturbance
from unified_video_action.env.pusht.geometry import DEFAULT_GOAL, TABLE_SIZE, coverage, state_targets
from unified_video_action.env.system_libraries import explain_missing_libraries

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
with explain_missing_libraries():
    import cv2
    from gym_pusht.envs.pusht import PushTEnv as GymPushTEnv


def start_state(seed: int) -> np.ndarray:
    """The start that Diffusion Policy's evaluation uses for `seed`: agent x, y, block x, y, block angle, shape (5,)."""
    random = np.random.RandomState(seed)
    agent = [random.randint(50, 450), random.randint(50, 450)]
    block = [random.randint(100, 400), random.randint(100, 400)]
    return np.array([*agent, *block, random.randn() * 2 * np.pi - np.pi])


class PushTEnv(GymPushTEnv):
    """One table with a T to push onto the goal pose.

    Observations: `image` uint8 (image_size, image_size, 3), `agent_pos` float32 (2,). Actions: float32 (2,), the target
    that the agent is pulled to, 10 per second. Positions are table pixels, 0..512, and angles are radians.

    `step` ends the episode on success and reports in its info `coverage` (share of the goal covered), `score`
    (min(coverage / 0.95, 1)), `is_success` (coverage > 0.95) and `state` (agent x, y, block x, y, block angle).

    `reset(seed=...)` starts as Diffusion Policy's evaluation does for that seed. `reset(options=...)` knows
      * `state` (5,): start exactly here instead. (A seed's start state is set as Diffusion Policy does, the block's
        position before its angle: the T turns about its centre of mass, so this moves it by tens of pixels.)
      * `goal` (3,): x, y and angle of the goal in this episode.

    A `disturbance` changes what pictures show, differently for every seed, and nothing else; see `Disturbance`.
    """

    def __init__(
        self,
        image_size: int = 96,
        goal: Sequence[float] = DEFAULT_GOAL,
        observe_image: bool = True,  # False leaves `image` out, for callers that need no frames
        disturbance: str | None = None,  # background, objects or goal (paper's Table III)
        disturbance_strength: float = 1.0,  # above 0, at most 1
    ) -> None:
        check_count("image_size", image_size, 8)
        self.observe_image = observe_image
        self.default_goal = checked_vector("goal", goal, 3)
        self._episode_goal = self.default_goal
        self._exact = False  # whether the start state is set exactly
        self._disturbance = None if disturbance is None else Disturbance(disturbance, disturbance_strength)
        super().__init__(obs_type="pixels_agent_pos", observation_width=image_size, observation_height=image_size)

    def _initialize_observation_space(self) -> None:
        self.observation_space = spaces.Dict({"agent_pos": spaces.Box(0, TABLE_SIZE, (2,), np.float32)})
        if self.observe_image:
            shape = (self.observation_height, self.observation_width, 3)
            self.observation_space["image"] = spaces.Box(0, 255, shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode; without a seed or a state, one is drawn from the environment's own generator."""
        options = checked_options(options, ("state", "goal"))
        state = options.get("state")
        self._episode_goal = checked_vector("goal", options.get("goal", self.default_goal), 3)
        self._exact = state is not None
        if state is None:
            state = start_state(self._drawn(seed))
        if self._disturbance is not None:
            self._disturbance.begin(self._drawn(seed))
        observation, info = super().reset(seed=seed, options={"reset_to_state": checked_vector("state", state, 5)})
        return observation, {**info, **self._progress()}

    def _drawn(self, seed: int | None) -> int:
        return int(self.np_random.integers(2**31)) if seed is None else seed

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Draw the agent to `action` (2,) for a tenth of a second; targets off the table are followed, not clipped."""
        action = checked_vector("action", action, 2)
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float(reward), bool(terminated), truncated, {**info, **self._progress(info["coverage"])}

    def try_actions(self, chunks: np.ndarray, steps: Sequence[int]) -> np.ndarray:
        """What would come of chunks (n, A, 2), leaving the episode as it is.

        Returns:
            (n, F, 6) states as `geometry.state_targets` after so many `steps` (F,); after the episode's end its last.
        """
        return np.stack([_in_copy(partial(self._states_of, chunk, steps)) for chunk in chunks])

    def _states_of(self, chunk: np.ndarray, steps: Sequence[int]) -> np.ndarray:
        """States (F, 6) after so many steps; the episode goes on from there."""
        states = [self.state]
        for action in chunk[: max(steps)]:
            self._move(*checked_vector("action", action, 2).tolist())
            states.append(self.state)
        states = np.stack(states)  # (A + 1, 5)
        success = coverage(states[:, 2:], self._episode_goal) > self.success_threshold
        success[[0, -1]] = False, True  # an episode has at least one step, and ends with the chunk
        return state_targets(states[np.minimum(steps, success.argmax())])

    def _move(self, x: float, y: float) -> None:
        """The physics of one control step with the agent pulled to (x, y), and nothing else."""
        for _ in range(int(1 / (self.dt * self.control_hz))):
            (agent_x, agent_y), (speed_x, speed_y) = self.agent.position, self.agent.velocity
            speed_x += (self.k_p * (x - agent_x) + self.k_v * (0 - speed_x)) * self.dt
            speed_y += (self.k_p * (y - agent_y) + self.k_v * (0 - speed_y)) * self.dt
            self.agent.velocity = speed_x, speed_y
            self.space.step(self.dt)

    def get_obs(self) -> dict[str, np.ndarray]:
        observation = {"agent_pos": np.array(self.agent.position, np.float32)}
        if self.observe_image:
            observation["image"] = self._render()
        return observation

    def _get_img(self, screen: Any, width: int, height: int, render_action: bool = False) -> np.ndarray:
        if render_action:
            return super()._get_img(screen, width, height, render_action)
        pixels = np.frombuffer(screen.get_view("0"), np.uint8).reshape(*screen.get_size(), 4)  # BGRX, not copied
        return np.ascontiguousarray(cv2.resize(pixels, (width, height))[..., 2::-1])  # the same image, 40 times faster

    @property
    def state(self) -> np.ndarray:
        """Agent x, y, block x, y, block angle in [0, 2 pi): float64 (5,)."""
        return np.array([*self.agent.position, *self.block.position, self.block.angle % (2 * np.pi)])

    def _progress(self, coverage: float | None = None) -> dict[str, Any]:
        coverage = float(self._get_coverage() if coverage is None else coverage)
        return {
            "coverage": coverage,
            "score": min(coverage / self.success_threshold, 1.0),
            "is_success": coverage > self.success_threshold,
            "state": self.state,
        }

    def _setup(self) -> None:
        super()._setup()
        self.goal_pose = self._episode_goal

    def _set_state(self, state: np.ndarray) -> None:
        if not self._exact:
            super()._set_state(state)
            return
        self.place(state)
        self.space.step(self.dt)  # leaves the poses, gives bodies that touch the velocity that parts them

    def place(self, state: np.ndarray) -> None:
        """Put agent and block exactly at `state` (5,), without simulating."""
        self.agent.position = state[:2].tolist()
        self.block.angle = float(state[4])  # before the position: it turns the block about its centre of mass
        self.block.position = state[2:4].tolist()
        self.space.reindex_shapes_for_body(self.agent)
        self.space.reindex_shapes_for_body(self.block)

    def _draw(self) -> Any:
        screen = super()._draw()
        if self._disturbance is not None:
            self._disturbance.apply(np.frombuffer(screen.get_view("0"), np.uint32).reshape(screen.get_size()))
        return screen

    def coverage_at(self, state: np.ndarray) -> float:
        """Put agent and block at `state` (5,): the share of the goal that is covered there."""
        self.place(state)
        return float(self._get_coverage())


def render_states(states: np.ndarray, goal: Sequence[float] = DEFAULT_GOAL, size: int = 96) -> np.ndarray:
    """Frames uint8 (N, size, size, 3) of `states` (N, 5), drawn as the environment does, without simulating."""
    env, frames = PushTEnv(size, goal), np.empty((len(states), size, size, 3), np.uint8)
    env.reset(seed=0)
    for frame, state in zip(frames, states, strict=True):
        env.place(checked_vector("state", state, 5))
        frame[:] = env.get_obs()["image"]
    return frames


def _in_copy(function: Callable[[], np.ndarray]) -> np.ndarray:
    """The result of `function` in a forked copy of this process, which stays as it is. POSIX only.

    The physics keeps more than positions and velocities (contacts and their impulses), so a copy made object by object
    drifts away from the original. RuntimeError: the function raised, or the copy died.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    copy = context.Process(target=_answer, args=(function, sender))
    copy.start()
    sender.close()
    succeeded, answer = False, "it died"
    with receiver, suppress(EOFError):
        succeeded, answer = receiver.recv()
    copy.join()
    if not succeeded:
        raise RuntimeError(f"a copy of the process failed: {answer}")
    return answer


def _answer(function: Callable[[], np.ndarray], sender: Connection) -> None:
    try:
        sender.send((True, function()))
    except Exception:
        sender.send((False, traceback.format_exc()))
