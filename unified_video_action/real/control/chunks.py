"""From action chunks to where the end effector is to be at any time.

Action i of a chunk is meant for t_now + (action_offset + i) steps, where t_now is the time of the newest frame that the
policy saw. When the chunk arrives, its first actions lie in the past, and are dropped. How a new chunk takes over:

* `latest`: the newest chunk counts.
* `ensemble`: the weighted mean of all chunks for a time, as ACT does (Zhao et al. 2023), the oldest weighing most.
* `continue`: the policy is given the rest of the chunk under way, to go on from (`Continuation`), as real-time chunking
  does (Black et al. 2025); then as `latest`.
"""

from __future__ import annotations

from collections import Counter, deque

import numpy as np

from unified_video_action.inference.continuation import Continuation
from unified_video_action.real.control.trajectory import Trajectory, ensemble
from unified_video_action.real.planner import PolicyDescription, moving_average

BLENDS = ("latest", "ensemble", "continue")
REMEMBERED = 3.0  # seconds of what is past, for chunks that go on from it
MOST_CHUNKS = 64  # in an ensemble


class BadPlan(ValueError):
    """An action chunk that cannot be followed."""


def read_chunk(
    actions: np.ndarray, policy: PolicyDescription, step: float, observed: float, base: np.ndarray, smooth: int = 1
) -> Trajectory:
    """Actions (A, D) in the policy's units -> poses in time.

    Args:
        step: seconds between two actions.
        observed: time of the newest frame that the policy saw.
        base: (4, 4) pose of the end effector then, from which relative actions are seen.
        smooth: actions that are averaged (see `moving_average`); 1: none.

    Raises:
        BadPlan: the actions are not finite, of another shape, or name no pose.
    """
    expected = policy.horizon.actions, policy.action_dim
    if actions.shape != expected:
        raise BadPlan(f"a plan of shape {actions.shape}, expected {expected}")
    if not np.isfinite(actions).all():
        raise BadPlan(f"{(~np.isfinite(actions)).sum()} of the plan's numbers are not finite")
    try:
        poses, grippers = policy.require_end_effector().targets(moving_average(actions, smooth), base)
    except ValueError as error:
        raise BadPlan(str(error)) from error
    return Trajectory(observed + step * np.array(policy.horizon.action_offsets), poses, grippers)


class Chunks:
    """The chunks under way. One thread adds chunks; another asks where the end effector is to be.

    Args:
        step: seconds between two actions.
        lead: seconds from a command to its being carried out; actions for earlier than that are dropped.
        counts: receives "plans", "stale_plans", "stale_actions" and "blends".
    """

    def __init__(self, policy: PolicyDescription, step: float, blend: str, lead: float, counts: Counter[str]) -> None:
        if blend not in BLENDS:
            raise ValueError(f"blend={blend!r}: expected {', '.join(BLENDS)}")
        if blend == "continue" and not policy.continues:
            raise ValueError(
                f"blend='continue': the policy {policy.name!r} cannot go on from a plan under way; use ensemble"
            )
        self._policy, self._step, self._blend, self._lead, self._counts = policy, step, blend, lead, counts
        self._chunks: deque[Trajectory] = deque(maxlen=MOST_CHUNKS)
        self.trajectory: Trajectory | None = None  # replaced as a whole, so that no lock is needed

    def clear(self) -> None:
        self._chunks.clear()
        self.trajectory = None

    def add(self, chunk: Trajectory, now: float, pose: np.ndarray, gripper: float) -> bool:
        """Take a chunk in; False where all of it is stale. The first one sets out from the commanded pose, gripper."""
        since = now + self._lead
        fresh = chunk.times > since
        self._counts["stale_actions"] += int((~fresh).sum())
        if not fresh.any():
            self._counts["stale_plans"] += 1
            return False
        self._counts["plans"] += 1
        before = self.trajectory
        if before is None:
            before = Trajectory(np.array([since]), pose[None], np.array([gripper]))
        else:
            self._counts["blends"] += int(before.end > since)
        if self._blend == "ensemble":
            self._chunks.append(chunk)
            while self._chunks[0].end <= since:
                self._chunks.popleft()
            chunk = ensemble(self._chunks)
        self.trajectory = before.followed_by(chunk, since, self._step, REMEMBERED)
        return True

    def continuation(self, observed: float, base: np.ndarray, arrival: float) -> Continuation | None:
        """What a chunk from a new observation is to keep to; None where nothing is left, or nothing is to be kept.

        Args:
            observed, base: time and end effector's pose of the observation.
            arrival: when the plan is expected.
        """
        trajectory = self.trajectory
        if self._blend != "continue" or trajectory is None:
            return None
        times = observed + self._step * np.array(self._policy.horizon.action_offsets)
        times = times[times <= trajectory.end]
        if not len(times):
            return None
        left = trajectory.sampled(times)
        actions = self._policy.require_end_effector().actions(left.poses, left.grippers, base)
        return Continuation(actions, keeping(times, arrival + self._lead))


def keeping(times: np.ndarray, arrival: float) -> np.ndarray:
    """Weights (n,) of what is left of a chunk: 1 until the new one arrives, then falling to 0, as the paper's (5)."""
    coming = times > arrival
    n = int(coming.sum())
    share = np.ones(len(times))
    share[coming] = np.arange(n, 0, -1) / (n + 1)
    return share * np.expm1(share) / np.expm1(1.0)
