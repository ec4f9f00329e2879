"""What an imagined plan is worth in PushT: how much of the goal the T covers, and how far it is from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from unified_video_action.env.checking import checked_vector
from unified_video_action.env.plan_score import Imagined, PlanScore
from unified_video_action.env.pusht.geometry import DEFAULT_GOAL, TABLE_SIZE, block_poses, coverage, distance, moved
from unified_video_action.env.pusht.reader import PushTReader

LOST = -10.0  # score of frames in which no T is found: below any other


class CoverageScore(PlanScore):
    """Coverage of the goal by the T less its distance from it, which also ranks plans that cover nothing.

    Coverage alone leads into dead ends, such as the T upside down on the goal; the distance falls all the way to it. (8
    plans tried in the simulator: 9 to 10 of 12 episodes succeeded with a shaping of 0 and 0.5, 12 with 3 and 10.)

    Args:
        at: which future frames count: an index (-1 is the last one), "best", the largest score over all, or "mean", the
            mean over all, which errs less where a model imagines the states.
        shaping: what a distance as long as the table costs; see `geometry.distance`.
        floor: coverage up to which plans are worth the same. A T that lies wrong on the goal must leave it first, so
            the policy's own plan is better there than the one that covers most.
        margin: by how much a plan must be better than the policy's own: a model's small differences are errors.
        correct: take from predicted states how the T moves, and where it is from the newest frame, in which it is seen
            more exactly. Where no T is seen there, states count as predicted.
        goal: x, y in table pixels and angle in radians.

    Raises ValueError for a value out of range.
    """

    def __init__(
        self,
        at: int | Literal["best", "mean"] = -1,
        shaping: float = 10.0,
        floor: float = 0.0,
        margin: float = 0.0,
        correct: bool = False,
        goal: Sequence[float] = DEFAULT_GOAL,
    ) -> None:
        if at not in ("best", "mean") and not isinstance(at, int):
            raise ValueError(f"CoverageScore.at must be the index of a future frame, best or mean, got {at!r}")
        for name, value in (("shaping", shaping), ("floor", floor), ("margin", margin)):
            if not value >= 0:
                raise ValueError(f"CoverageScore.{name} must be >= 0, got {value!r}")
        self.at, self.shaping, self.floor, self.margin, self.correct = at, shaping, floor, margin, correct
        self.goal = checked_vector("CoverageScore.goal", goal, 3)

    def __call__(self, imagined: Imagined) -> np.ndarray:
        poses = block_poses(imagined.states)  # (n, F, 3)
        if self.correct and imagined.now is not None:  # a simulator's states are exact
            read = PushTReader()(imagined.newest)
            seen = np.where(read.one_block[:, None], read.state[:, 2:], np.nan)
            seen = seen.repeat(len(poses) // len(seen), axis=0)[:, None]  # (n, 1, 3)
            corrected = moved(poses, block_poses(imagined.now)[:, None], seen)
            poses = np.where(np.isfinite(seen).all(axis=-1, keepdims=True), corrected, poses)
        return self._rated(self.value(poses))

    def value(self, poses: np.ndarray) -> np.ndarray:
        """Score (...) of the T at poses (..., 3); NaN where a pose is not finite."""
        known = np.isfinite(poses).all(axis=-1)
        safe = np.where(known[..., None], poses, 0.0)
        covered = np.maximum(coverage(safe, self.goal), self.floor)
        return np.where(known, covered - self.shaping * distance(safe, self.goal) / TABLE_SIZE, np.nan)

    def _rated(self, values: np.ndarray) -> np.ndarray:
        """Values (n, F) of future frames -> scores (n,) of plans."""
        if self.at in ("mean", "best"):
            return values.mean(axis=1) if self.at == "mean" else values.max(axis=1)
        if not -values.shape[1] <= self.at < values.shape[1]:
            raise ValueError(f"CoverageScore.at={self.at}: there are {values.shape[1]} future frames")
        return values[:, self.at]


class FrameCoverageScore(CoverageScore):
    """The same, of the T that is seen in the frames. A frame without a whole T is worth less than any other."""

    needs = frozenset({"frames"})

    def __call__(self, imagined: Imagined) -> np.ndarray:
        seen = PushTReader()(np.moveaxis(imagined.frames, 2, -1))  # (n, F)
        values = self.value(seen.state[..., 2:])  # NaN where no T is found
        return self._rated(np.where(seen.one_block & np.isfinite(values), values, LOST))
