"""What the actions of a robomimic file are: poses of the end effector, or steps that it takes."""

from __future__ import annotations

import json
from enum import Enum

import numpy as np

FOLLOWS = 0.5  # share of the end effector's variance that may lie between it and poses that lead it
ALONG = 0.5  # cosine between steps and the end effector's motion


class ActionKind(Enum):
    POSES = "poses in the frame of the end effector's observed position"
    OTHER_FRAME = "poses in another frame"
    STEPS = "steps"
    UNCLEAR = "none of these"


def kind_of_actions(
    actions: np.ndarray, effector: np.ndarray, episode_ends: np.ndarray, arguments: str | None
) -> ActionKind:
    """Judge by the end effector's motion, and only where that does not tell by what the file says of its controller.

    The file comes second because it may be wrong: the published `image_abs.hdf5` of Diffusion Policy, whose actions are
    poses, still names the controller that took the steps of the recording. All lengths are compared with the motion of
    the end effector, so small and large arms are judged alike.

    Args:
        actions: (N, 7), position first. end effector: its observed positions (N, 3) before the actions.
        episode_ends: (E,) row after each episode's last one.
        arguments: the file's env_args, JSON.
    """
    position, effector = actions[:, :3].astype(np.float64), effector.astype(np.float64)
    spread = _variance(effector)
    ahead = position - effector
    offset = np.median(ahead, axis=0)
    if np.square(ahead - offset).sum(1).mean() <= FOLLOWS * spread:
        return ActionKind.POSES if np.square(offset).sum() <= spread else ActionKind.OTHER_FRAME
    last = np.isin(np.arange(len(effector)) + 1, episode_ends)
    motion = np.diff(effector, axis=0)[~last[:-1]]  # (n, 3), within episodes
    steps = position[:-1][~last[:-1]]
    if (steps * motion).sum() > ALONG * np.sqrt(np.square(steps).sum() * np.square(motion).sum()):
        return ActionKind.STEPS
    if _variance(position - effector @ _turn(effector, position)) <= FOLLOWS * spread:
        return ActionKind.OTHER_FRAME
    taken = takes_steps(arguments)
    if taken:
        return ActionKind.STEPS
    near = np.median(np.square(ahead).sum(1)) <= 9 * spread  # a position where the end effector may have been
    return ActionKind.POSES if taken is False and near else ActionKind.UNCLEAR


def takes_steps(arguments: str | None) -> bool | None:
    """Whether the controller in env_args takes steps, relative to the end effector; None where it does not say."""
    try:
        controller = json.loads(arguments)["env_kwargs"]["controller_configs"]
        if "control_delta" in controller:  # robosuite before 1.5
            return bool(controller["control_delta"])
        kinds = {part.get("input_type") for part in controller["body_parts"].values() if "OSC" in part.get("type", "")}
    except (TypeError, ValueError, KeyError, AttributeError):
        return None
    return {frozenset({"delta"}): True, frozenset({"absolute"}): False}.get(frozenset(kinds))


def _variance(values: np.ndarray) -> float:
    """Mean square distance of (N, 3) from their mean."""
    return float(np.square(values - values.mean(0)).sum(1).mean())


def _turn(effector: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) that brings `effector @ rotation` nearest to `position`, whatever their means."""
    left, _, right = np.linalg.svd((effector - effector.mean(0)).T @ (position - position.mean(0)))
    left[:, -1] *= np.sign(np.linalg.det(left @ right))
    return left @ right
