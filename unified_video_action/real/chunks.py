"""From the chunks of actions that a policy plans to where the hand is to be at any time.

Action i of a chunk is meant for t_now + (action_offset + i) steps, where t_now is when the newest frame that the
policy saw was taken. By the time the plan comes, its first actions lie in the past, and are dropped. How the plan
under way gives way to the next one is chosen by name:

* `latest`: the newest plan counts.
* `ensemble`: the weighted mean of all plans for a time, as ACT does (Zhao et al. 2023), the oldest weighing most.
* `continue`: the policy is given the rest of the plan under way, to go on from (`Continuation`), as real-time chunking
  does (Black et al. 2025); then as `latest`.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from unified_video_action.inference.continuation import Continuation
from unified_video_action.real.observer import hand_of
from unified_video_action.real.planner import PolicyDescription
from unified_video_action.real.smoothing import moving_average
from unified_video_action.real.trajectory import Trajectory

BLENDS = ("latest", "ensemble", "continue")
DECAY = 0.01  # of the weights of ever newer plans, as ACT has it
REMEMBERED = 3.0  # seconds of what is past, for plans that go on from it
MOST_PLANS = 64  # in an ensemble


class BadPlan(ValueError):
    """A plan that cannot be followed."""


@dataclass(frozen=True)
class Plan:
    """A chunk as poses in time."""

    observed: float  # t_now
    trajectory: Trajectory


def read_plan(
    actions: np.ndarray,
    description: PolicyDescription,
    step_seconds: float,
    observed: float,
    base: np.ndarray,
    taps: int = 1,
) -> Plan:
    """Actions (A, D) as said by a policy -> poses in time.

    Args:
        base: (4, 4) pose of the hand at `observed`, from which relative actions are seen.
        taps: actions that are averaged (see `moving_average`); 1: none.

    Raises:
        BadPlan: the actions are not finite, of another shape, or name no pose.
    """
    horizon = description.horizon
    if actions.shape != (horizon.actions, description.action_dim):
        raise BadPlan(f"a plan of shape {actions.shape}, expected {(horizon.actions, description.action_dim)}")
    if not np.isfinite(actions).all():
        raise BadPlan(f"{(~np.isfinite(actions)).sum()} of the plan's numbers are not finite")
    try:
        poses, grippers = hand_of(description).targets(moving_average(actions, taps), base)
    except ValueError as error:
        raise BadPlan(str(error)) from error
    times = observed + step_seconds * np.array(horizon.action_offsets)
    return Plan(observed, Trajectory(times, poses, grippers))


class Chunks:
    """The plans under way. One thread adds plans; another asks where the hand is to be.

    Args:
        step_seconds: between two actions.
        lead: seconds from a command to its being carried out; actions for earlier than that are dropped.
        counts: receives "plans", "stale_plans", "stale_actions" and "blends".
    """

    def __init__(
        self, description: PolicyDescription, step_seconds: float, blend: str, lead: float, counts: Counter[str]
    ) -> None:
        if blend not in BLENDS:
            raise ValueError(f"blend={blend!r}: expected {', '.join(BLENDS)}")
        if blend == "continue" and not description.continues:
            raise ValueError(
                f"blend='continue': the policy {description.name!r} cannot go on from a plan under way; use ensemble"
            )
        self._description, self._step = description, step_seconds
        self._blend, self._lead, self._counts = blend, lead, counts
        self._plans: deque[Plan] = deque(maxlen=MOST_PLANS)
        self._trajectory: Trajectory | None = None  # replaced as a whole, so that no lock is needed

    @property
    def trajectory(self) -> Trajectory | None:
        return self._trajectory

    def clear(self) -> None:
        """Forget all plans."""
        self._plans.clear()
        self._trajectory = None

    def add(self, plan: Plan, now: float, pose: np.ndarray, gripper: float) -> bool:
        """Take a plan in; False where all of it is stale.

        Args:
            pose, gripper: where the hand is told to be now; where the first plan sets out from.
        """
        since = now + self._lead
        fresh = plan.trajectory.times > since
        self._counts["stale_actions"] += int((~fresh).sum())
        if not fresh.any():
            self._counts["stale_plans"] += 1
            return False
        self._counts["plans"] += 1
        self._plans.append(plan)
        before = self._trajectory
        if before is None:
            before = Trajectory(np.array([since]), pose[None], np.array([gripper]))
        else:
            self._counts["blends"] += int(before.end > since)
        newest = plan.trajectory
        if self._blend == "ensemble":
            while self._plans[0].trajectory.end <= since:
                self._plans.popleft()
            newest = ensemble([each.trajectory for each in self._plans])
        self._trajectory = before.followed_by(newest, since, self._step, REMEMBERED)
        return True

    def at(self, time: float) -> tuple[np.ndarray, float] | None:
        """Pose (4, 4) and opening to be reached at a time; None before there is a plan."""
        trajectory = self._trajectory
        return None if trajectory is None else trajectory.at(time)

    def going_on(self, observed: float, base: np.ndarray, now: float, latency: float) -> Continuation | None:
        """What a plan from a new observation is to keep to; None where nothing is left, or nothing is to be kept.

        Args:
            observed, base: time and hand's pose of the observation.
            latency: seconds that the plan is expected to take.
        """
        trajectory = self._trajectory
        if self._blend != "continue" or trajectory is None:
            return None
        times = observed + self._step * np.array(self._description.horizon.action_offsets)
        times = times[times <= trajectory.end]
        if not len(times):
            return None
        left = trajectory.sampled(times)
        actions = hand_of(self._description).actions(left.poses, left.grippers, base)
        return Continuation(actions, keeping(times, now + latency + self._lead))


def keeping(times: np.ndarray, arrival: float) -> np.ndarray:
    """Weights (n,) of what is left of a plan: 1 until the new one arrives, then falling to 0, as in the paper's (5)."""
    coming = times > arrival
    n = int(coming.sum())
    share = np.ones(len(times))
    share[coming] = np.arange(n, 0, -1) / (n + 1)
    return share * np.expm1(share) / np.expm1(1.0)


def ensemble(trajectories: list[Trajectory]) -> Trajectory:
    """The weighted mean of trajectories, oldest first, at the times of the newest."""
    times = trajectories[-1].times
    said = [each.sampled(times) for each in trajectories]
    known = np.stack([(each.times[0] <= times) & (times <= each.end) for each in trajectories])  # (plans, n)
    weights = np.exp(-DECAY * (known.cumsum(axis=0) - 1)) * known
    weights /= weights.sum(axis=0)
    poses = np.einsum("pn,pnij->nij", weights, np.stack([each.poses for each in said]))  # (n, 4, 4)
    left, _, right = np.linalg.svd(poses[:, :3, :3])  # the rotations nearest to the means of matrices
    left[..., 2] *= np.linalg.det(left @ right)[:, None]
    poses[:, :3, :3] = left @ right
    return Trajectory(times, poses, (weights * np.stack([each.grippers for each in said])).sum(axis=0))
