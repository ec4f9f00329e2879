"""How well a model tells the motion of a hand-held camera from what it sees (paper, Table VI)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from unified_video_action.dataset.sampling import sample_seed
from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.evaluation.bootstrap import Bootstrap
from unified_video_action.evaluation.windows import generators, observation
from unified_video_action.policy.base import BasePolicy
from unified_video_action.poses import EndEffectorSpec, distance

SEED = 20260602  # of the noise, the same every time


def windows_of(dataset: WindowDataset, count: int) -> list[int]:
    """At most `count` windows, spread evenly over a dataset."""
    count = min(count, len(dataset))
    return [i * len(dataset) // count for i in range(count)]


@torch.no_grad()
def predict(
    policy: BasePolicy, dataset: WindowDataset, indices: Sequence[int], sampler: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The chunks that the future frames of windows show, and the recorded ones.

    Args:
        dataset: with frames, not latents.

    Returns:
        predicted and true actions (windows, A, D) in the data's units, and which steps are recorded (windows, A).
    """
    made: list[tuple[np.ndarray, ...]] = []
    for batch in _batches(dataset, indices):
        noise = generators(batch["seed"].tolist())
        read = policy.predict_inverse_dynamics(observation(batch), batch["future"], generator=noise, sampler=sampler)
        made.append((read["action_pred"].cpu().numpy(), batch["action"].numpy(), ~batch["action_is_pad"].numpy()))
    return tuple(np.concatenate(part) for part in zip(*made, strict=True))


def pose_errors(
    predicted: np.ndarray, true: np.ndarray, recorded: np.ndarray, end_effector: EndEffectorSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Errors of actions (windows, A, 10) that are poses of an end effector, relative to that of the newest observation.

    Returns:
        of positions in centimetres and of rotations in degrees, (windows, A); NaN where a step lies beyond the episode.

    Raises:
        ValueError: actions that are not poses.
    """
    here = np.broadcast_to(np.eye(4), (len(predicted), 4, 4))  # distances are the same wherever they are seen from
    position, rotation = distance(end_effector.targets(predicted, here)[0], end_effector.targets(true, here)[0])
    missing = np.where(recorded, 0.0, np.nan)
    return 100 * position + missing, np.degrees(rotation) + missing


def summary(errors: np.ndarray, episodes: np.ndarray) -> dict[str, Any]:
    """Of errors (windows, A): their mean (`value`) with its 95 % interval over `episodes` (windows,), the median and
    the 90th percentile of windows, and the mean at every step."""
    known = ~np.isnan(errors).all(axis=1)
    errors, steps = errors[known], ~np.isnan(errors).all(axis=0)
    windows = np.nanmean(errors, axis=1)  # (windows,)
    found = Bootstrap(episodes[known], SEED).mean(windows)
    return {
        **found,
        "median": float(np.median(windows)),
        "p90": float(np.percentile(windows, 90)),
        "windows": len(windows),
        "by_step": [float(np.nanmean(errors[:, i])) if known else None for i, known in enumerate(steps)],
    }


def recorded_actions(dataset: WindowDataset, indices: Sequence[int]) -> np.ndarray:
    """Recorded actions (windows, A, D)."""
    return np.concatenate([batch["action"].numpy() for batch in _batches(dataset, indices)])


def standing_still(true: np.ndarray, end_effector: EndEffectorSpec) -> np.ndarray:
    """Relative actions (windows, A, 10) of an end effector that stays where it is: a model that sees no motion.

    Raises:
        ValueError: actions are not relative, so they do not contain where the end effector is.
    """
    if not end_effector.relative_actions:
        raise ValueError(
            "task.end_effector.relative_actions=false: absolute actions do not contain where the end effector is"
        )
    still = end_effector.actions(np.broadcast_to(np.eye(4), (*true.shape[:2], 4, 4)), true[..., 9], np.eye(4))
    return np.asarray(still, true.dtype)


def _batches(dataset: WindowDataset, indices: Sequence[int], size: int = 16) -> Iterator[dict]:
    for first in range(0, len(indices), size):
        yield dataset.__getitems__([(index, int(sample_seed(SEED, index))) for index in indices[first : first + size]])
