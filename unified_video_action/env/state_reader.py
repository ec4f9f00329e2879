"""What pictures of a task show, in the task's units: the interface between the measures of a world model and a task.
Needs no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Readings:
    """What frames (...) show of an agent and of the block that it moves; NaN where there is no such thing."""

    agent: np.ndarray  # (..., 2) in the task's units of length
    block: np.ndarray  # (..., 2)
    angle: np.ndarray  # (...) of the block, radians in [0, 2 pi)
    one_agent: np.ndarray  # (...) bool: exactly one agent, and whole
    one_block: np.ndarray  # (...) bool: exactly one block, and whole

    @property
    def state(self) -> np.ndarray:
        """(..., 5): agent x, y, block x, y, block angle."""
        return np.concatenate([self.agent, self.block, self.angle[..., None]], axis=-1)


class StateReader(ABC):
    """Reads states from frames; a task's configuration names one (`task.reader`)."""

    unit = ""  # of lengths

    @abstractmethod
    def __call__(self, frames: np.ndarray) -> Readings:
        """uint8 (..., S, S, 3) -> readings (...). Raises ValueError for other shapes or types."""

    def in_picture(self, actions: np.ndarray, size: int) -> np.ndarray | None:
        """Where actions (..., D) lie in a picture of `size` pixels: (..., 2) x, y. None: actions are not positions."""
        return None

    def simulate(self, states: np.ndarray, actions: np.ndarray, offsets: Sequence[int], size: int) -> np.ndarray | None:
        """What the simulator shows when it executes action chunks from states at rest.

        Args:
            states: (N, 5) as `Readings.state`. actions: (N, A, D) in the data's units, one per control step.
            offsets: control steps after which frames are wanted.

        Returns:
            uint8 (N, len(offsets), size, size, 3); None: the task has no such simulator.
        """
        return None
