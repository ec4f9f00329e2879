"""What an imagined plan is worth in block pushing where one block is wanted in one square."""

from __future__ import annotations

import numpy as np

from unified_video_action.env.block_push.layout import BLOCK_SIDE, EFFECTOR_RADIUS, PAIRS, PLACES
from unified_video_action.env.plan_score import Imagined, PlanScore

BEHIND = BLOCK_SIDE / np.sqrt(2) + EFFECTOR_RADIUS  # metres behind a block's centre from where it can be pushed

APPROACH = 0.5  # cost of a metre of the effector's way beside one of the block's: tells plans that move no block apart


class PairScore(PlanScore):
    """How near a plan brings the wanted block to its square, less its distance, and the effector to behind that block.

    Args:
        wanted: red_in_red, red_in_green, green_in_red or green_in_green: block and square.

    Raises ValueError for a value out of range.
    """

    def __init__(self, wanted: str | None) -> None:
        if wanted not in PAIRS:
            raise ValueError(f"PairScore.wanted (task.planner_score.wanted) must be {', '.join(PAIRS)}, got {wanted!r}")
        self.wanted = wanted

    def __call__(self, imagined: Imagined) -> np.ndarray:
        last = imagined.states[:, -1].reshape(-1, len(PLACES), 2)  # (n, 5, 2)
        block, square = PAIRS[self.wanted]
        effector, centre, goal = last[:, 0], last[:, 1 + block], last[:, 3 + square]
        left = np.linalg.norm(goal - centre, axis=-1)  # (n,)
        behind = centre - BEHIND * (goal - centre) / np.maximum(left, 1e-6)[:, None]
        return -left - APPROACH * np.linalg.norm(effector - behind, axis=-1)
