"""What can go wrong with a robot, to be switched on while it runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Faults:
    """Every field may be changed at any time, from any thread; the defaults are a robot in good order."""

    unplugged: bool = False  # the arm's states and commands raise RobotError; it holds where it was told to go
    state_delay: float = 0.0  # seconds by which states come later; their times stay true
    jump: np.ndarray | None = None  # (3,) metres by which the reported position is wrong: a pose that teleports
    not_a_number: bool = False  # the reported position is NaN
    dead_camera: bool = False  # no frame comes any more
    stuck_camera: bool = False  # the same picture comes again and again, with new times
    camera_delay: float = 0.0  # seconds by which frames come later; their times stay true
    dropped_frames: float = 0.0  # share of frames that never come, 0 to 1
