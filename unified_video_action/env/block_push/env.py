"""Block pushing as a gymnasium environment: two blocks, two squares, any order and any pairing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from unified_video_action.env.block_push.layout import (
    HIGH,
    LOW,
    PAIRS,
    PLACES,
    STATE_SIZE,
    STEP,
    blocks_in_squares,
    start_state,
    state_targets,
)
from unified_video_action.env.block_push.scene import ASPECT, Scene
from unified_video_action.env.checking import checked_options, checked_vector


class BlockPushEnv(gymnasium.Env):
    """A table seen from the front, with an effector that pushes two blocks into two squares.

    Observations: `image` uint8 (image_size, 4/3 image_size, 3), `effector` float32 (2,), its x and y; `places`
    float32 (10,), x and y of effector, blocks and squares. Actions: float32
    (2,), the x and y to which the effector goes; 10 of them a second. Targets off the table are clipped to it, and the
    effector's way in one step to 0.03 m. Lengths are metres, angles radians; `layout` has the frame.

    `step` ends the episode on success and reports in its info `score` (half for each square that holds a block),
    `is_success` (both do), `red_in_red`, `red_in_green`, `green_in_red`, `green_in_green` (0 or 1: block in square, by
    a distance of their centres below 0.05 m) and `state` (effector x, y, and x, y, angle of the red block, the green
    block, the red square and the green square).

    Where one of the four is `wanted`, it alone is `score` and `is_success`, and both blocks in squares end the episode
    as well.

    `reset(seed=...)` draws blocks and squares as IBC's multi-modal task does. `reset(options={"state": (14,)})` starts
    there instead.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"

    def __init__(
        self,
        image_size: int = 96,  # height of the frames; their width is 4/3 of it
        observe_image: bool = True,  # False leaves `image` out, for callers that need no frames
        wanted: str | None = None,  # red_in_red, ...: what alone counts; None: both blocks in different squares
    ) -> None:
        if wanted is not None and wanted not in PAIRS:
            raise ValueError(f"BlockPushEnv.wanted must be null or one of {', '.join(PAIRS)}, got {wanted!r}")
        self.frame_size = frame_size(image_size)
        self.observe_image, self.wanted = observe_image, wanted
        self.action_space = spaces.Box(LOW.astype(np.float32), HIGH.astype(np.float32), dtype=np.float32)
        margin = np.float32(0.05)  # the effector follows its target, and may run past it by a hair
        self.observation_space = spaces.Dict(
            {
                "effector": spaces.Box(
                    self.action_space.low - margin, self.action_space.high + margin, dtype=np.float32
                ),
                "places": spaces.Box(-np.inf, np.inf, (2 * len(PLACES),), np.float32),
            }
        )
        if observe_image:
            self.observation_space["image"] = spaces.Box(0, 255, (*self.frame_size, 3), np.uint8)
        self._scene: Scene | None = Scene()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode; without a seed or a state, one is drawn from the environment's own generator."""
        super().reset(seed=seed)
        state = checked_options(options, ("state",)).get("state")
        state = start_state(self.np_random) if state is None else checked_vector("state", state, STATE_SIZE)
        self.scene.build(state)
        return self._look()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Send the effector to `action` (2,) for a tenth of a second."""
        self.move(action)
        observation, info = self._look()
        done = info["is_success"] or bool(blocks_in_squares(info["state"]).any(axis=0).all())
        return observation, info["score"], done, False, info

    def try_actions(self, chunks: np.ndarray, steps: Sequence[int]) -> np.ndarray:
        """States (n, F, 10), see `layout.state_targets`, after so many `steps` (F,) of chunks (n, A, 2).

        The episode stays as it is.
        """
        tried = []
        for chunk in chunks:
            with self.scene.kept():
                states = [self.scene.state]
                for action in chunk[: max(steps)]:
                    self.move(action)
                    states.append(self.scene.state)
            tried.append(state_targets(np.stack(states)[list(steps)]))
        return np.stack(tried)

    def move(self, action: np.ndarray) -> None:
        """The physics of one control step."""
        target = np.clip(checked_vector("action", action, 2), LOW, HIGH)
        way = target - self.scene.target
        self.scene.move(self.scene.target + way * min(1.0, STEP / max(float(np.linalg.norm(way)), 1e-9)))

    def render(self) -> np.ndarray:
        """The camera's frame: uint8 (H, W, 3)."""
        return self.scene.render(*self.frame_size)

    def close(self) -> None:
        if self._scene is not None:
            self._scene.close()
            self._scene = None

    @property
    def scene(self) -> Scene:
        if self._scene is None:
            raise RuntimeError("the environment is closed: make a new one")
        return self._scene

    def _look(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The observation and the info of now."""
        state = self.scene.state
        observation = {
            "effector": state[:2].astype(np.float32),
            "places": state_targets(state).astype(np.float32),
        }
        if self.observe_image:
            observation["image"] = self.render()
        inside = blocks_in_squares(state)  # (2, 2)
        pairs = {name: float(inside[pair]) for name, pair in PAIRS.items()}
        score = pairs[self.wanted] if self.wanted else float(inside.any(axis=0).sum()) / 2
        return observation, {"score": score, "is_success": score == 1, **pairs, "state": state}


def frame_size(image_size: int) -> tuple[int, int]:
    """(height, width) of frames of that height. Raises ValueError for one too small, or not a multiple of 3."""
    width, height = ASPECT
    if not isinstance(image_size, int) or image_size < 24 or image_size % height:
        raise ValueError(
            f"image_size must be the frames' height, a multiple of {height} from 24 pixels on, got {image_size!r}"
        )
    return image_size, image_size // height * width
