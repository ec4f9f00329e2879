"""Goal poses of PushT other than the usual one."""

from __future__ import annotations

import numpy as np

GOAL_RANGE = (130.0, 382.0)  # x and y of random goals: the T, which reaches 121 pixels, lies on the table at any angle


def random_goal(rng: np.random.Generator) -> np.ndarray:
    """A goal pose anywhere on the table that the T can take: (3,) x, y in table pixels, angle in radians."""
    x, y = rng.uniform(*GOAL_RANGE, size=2)
    return np.array([x, y, rng.uniform(-np.pi, np.pi)])
