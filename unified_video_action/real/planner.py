"""What a robot's loop, or any client, knows of a policy that plans for it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from unified_video_action.poses import EndEffectorSpec
from unified_video_action.spec import Horizon


class PlannerError(RuntimeError):
    """No plan: the server is lost or busy, refused the request, or the policy failed. The message says which, and
    `code` is the server's code word for it, if it gave one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class ObservationEntry:
    """One observation that a policy reads."""

    kind: Literal["rgb", "low_dim"]
    shape: tuple[int, ...]  # of one step: (H, W, 3) of frames as the policy was trained on them, (d,) of states
    steps: int  # how many are read, oldest first, the newest last


@dataclass(frozen=True)
class PolicyDescription:
    """What a checkpoint reads and says; travels as JSON-like data."""

    name: str
    observations: Mapping[str, ObservationEntry]
    horizon: Horizon
    action_dim: int
    action_steps: int  # actions of a plan that its configuration executes
    follows_text: bool
    instructions: tuple[str, ...] = ()  # those it was trained on, where known
    step_seconds: float | None = None  # between two steps of the data it was trained on
    end_effector: EndEffectorSpec | None = None  # how an arm's poses become states, and actions poses; None: no arm
    continues: bool = False  # accepts `Continuation`s
    fingerprint: str | None = None  # of its checkpoint's files, where the server says

    def require_end_effector(self) -> EndEffectorSpec:
        """Raises ValueError for a policy that does not move an end effector."""
        if self.end_effector is None:
            raise ValueError(
                f"policy {self.name!r} does not say how its actions move an end effector (task.end_effector); only "
                "policies trained on its poses, such as those of UMI data, can move an arm"
            )
        return self.end_effector

    def to_json(self) -> dict[str, Any]:
        """Only dicts, lists, strings, numbers, booleans and None."""
        data = asdict(self)
        data["hand"] = data.pop("end_effector")  # its name in the protocol, which clients in use read
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PolicyDescription:
        """Inverse of `to_json`. Raises ValueError for data of another shape."""
        try:
            data = dict(data)
            data["observations"] = {
                name: ObservationEntry(entry["kind"], tuple(entry["shape"]), entry["steps"])
                for name, entry in data["observations"].items()
            }
            data["horizon"] = Horizon(**data["horizon"])
            data["instructions"] = tuple(data.get("instructions", ()))
            spec = data.pop("hand", None)
            data["end_effector"] = None if spec is None else EndEffectorSpec(**spec)
            return cls(**data)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"this is not a description of a policy: {error!r}; is it the server of another project?"
            ) from error


def moving_average(actions: np.ndarray, taps: int = 3) -> np.ndarray:
    """Average each action (A, D) with its neighbours, the first and the last repeated beyond the ends.

    The paper's code smooths the 16 actions of a real robot so, with 3 taps; rotations in their 6-D form.

    Raises:
        ValueError: `taps`, the number that is averaged, is not odd.
    """
    if taps < 1 or taps % 2 == 0:
        raise ValueError(f"smooth={taps}: expected an odd number of actions to average, 3 as published")
    reach = taps // 2
    padded = np.pad(actions, ((reach, reach), (0, 0)), mode="edge")
    return np.mean([padded[start : start + len(actions)] for start in range(taps)], axis=0).astype(actions.dtype)
