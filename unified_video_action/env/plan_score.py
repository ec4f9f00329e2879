"""What an imagined plan is worth: the interface between a planner and a task. Needs no torch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Imagined:
    """Plans and what is imagined of them. What the score does not need is None."""

    actions: np.ndarray  # (n, A, D) in the data's units
    states: np.ndarray | None = None  # (n, F, K) future states, as the task's auxiliary targets
    frames: np.ndarray | None = None  # uint8 (n, F, 3, H, W) future frames of the main camera
    now: np.ndarray | None = None  # (n, K) with `states`: the same targets as the model sees them in the newest frame
    newest: np.ndarray | None = (
        None  # uint8 (m, H, W, 3) that frame of each environment; n / m plans in a row are of it
    )


class PlanScore(ABC):
    """Scores imagined plans; a configuration names one with `_target_`."""

    needs: frozenset[str] = frozenset({"states"})  # "states", "frames" or both; only these are imagined
    margin: float = 0.0  # a plan other than the policy's first one must be better than that by so much

    @abstractmethod
    def __call__(self, imagined: Imagined) -> np.ndarray:
        """Score (n,) of each plan, higher is better."""
