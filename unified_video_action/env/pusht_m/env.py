"""PushT-M (paper's section IV): PushT whose goal is sampled for every episode, and shown in the image alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from unified_video_action.env.pusht.env import PushTEnv
from unified_video_action.env.pusht.geometry import random_goal

STREAM = 0x60A1  # sets the goal's draw apart from others of the same seed


def goal_of(seed: int) -> np.ndarray:
    """The goal pose of the episode with this seed: (3,) x, y in table pixels, angle in radians."""
    return random_goal(np.random.default_rng([STREAM, seed]))


class PushTMEnv(PushTEnv):
    """`PushTEnv` with a goal of its own for every seed; agent and T start where PushT's do.

    `reset(options={"goal": ...})` sets the goal; other options, observations, actions and info are PushT's.
    """

    def __init__(
        self,
        image_size: int = 96,
        observe_image: bool = True,
        disturbance: str | None = None,
        disturbance_strength: float = 1.0,
    ) -> None:
        super().__init__(
            image_size,
            observe_image=observe_image,
            disturbance=disturbance,
            disturbance_strength=disturbance_strength,
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode; without a seed, start and goal are drawn from the environment's own generator."""
        options = dict(options or {})
        if "goal" not in options:
            options["goal"] = goal_of(int(self.np_random.integers(2**31)) if seed is None else seed)
        return super().reset(seed=seed, options=options)
