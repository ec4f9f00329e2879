"""From the chunks of actions that a policy plans to where the hand is to be at any time.

Action i of a chunk is meant for t_now + (action_offset + i) steps, where t_now is when the newest frame that the
policy saw was taken. By the time the plan comes, its first actions lie in the past, and are dropped. How the plan
under way gives way to the next one is chosen by name:

* `latest`: the newest plan counts.
* `ensemble`: the weighted mean of all plans for a time, as ACT does (Zhao et al. 2023), the oldest weighing most.
* `continue`: the policy is given the rest of the plan under way, to go on from (`Continuation`), as real-time chunking
  does (Black et al. 2025); then as `latest`.

`Planning` is the thread that asks for plans.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from unified_video_action.inference.continuation import Continuation
from unified_video_action.real.observer import Observer, hand_of
from unified_video_action.real.planner import Planner, PlannerError, PolicyDescription
from unified_video_action.real.server.errors import BAD_REQUEST, POLICY_FAILED
from unified_video_action.real.smoothing import moving_average
from unified_video_action.real.statistics import Statistics
from unified_video_action.real.trajectory import Trajectory
from unified_video_action.real.watchdog import Reason, Stop

log = logging.getLogger(__name__)

BLENDS = ("latest", "ensemble", "continue")
DECAY = 0.01  # of the weights of ever newer plans, as ACT has it
REMEMBERED = 3.0  # seconds of what is past, for plans that go on from it
MOST_PLANS = 64  # in an ensemble
RECENT_PLANS = 10  # whose slowest tells how long the next may take
PROBE = 0.5  # seconds between two tries to reach a lost server


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
    newest = trajectories[-1]
    poses, grippers = newest.poses.copy(), newest.grippers.copy()
    for index, time in enumerate(newest.times):
        known = [each for each in trajectories if each.times[0] <= time <= each.end]
        weights = np.exp(-DECAY * np.arange(len(known)))
        weights /= weights.sum()
        said, openings = zip(*(each.at(float(time)) for each in known))
        said = np.stack(said)
        poses[index, :3, 3] = weights @ said[:, :3, 3]
        poses[index, :3, :3] = Rotation.from_matrix(said[:, :3, :3]).mean(weights).as_matrix()
        grippers[index] = weights @ np.array(openings)
    return Trajectory(newest.times, poses, grippers)


class Planning:
    """Asks the policy for plans, in a thread of its own.

    Args:
        rate: plans per second at most.
        smooth: actions that are averaged, see `moving_average`.
        told: the pose (4, 4) and opening that the arm was sent last.
        on_plan: is given the time of the newest frame, that of the plan's arrival, and the actions (A, D).
        on_ready: called when the policy has made a first plan.
    """

    def __init__(
        self,
        planner: Planner,
        observer: Observer,
        chunks: Chunks,
        step_seconds: float,
        rate: float,
        smooth: int,
        statistics: Statistics,
        told: Callable[[], tuple[np.ndarray, float]],
        now: Callable[[], float],
        on_plan: Callable[[float, float, np.ndarray], None] | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.planner, self.observer, self.chunks = planner, observer, chunks
        self.text: str | None = None  # the instruction
        self.seed = 0
        self.fault: Stop | None = None  # why there is no plan
        self.last = -np.inf  # when a plan came, or the asking began
        self.waiting = False  # for an answer
        self._step_seconds, self._every, self._smooth, self._statistics = step_seconds, 1.0 / rate, smooth, statistics
        self.ready = False  # it has planned once: the first plan may take long, and nobody waits for it in motion
        self._told, self._now, self._on_plan, self._on_ready = told, now, on_plan, on_ready
        self._run = 0  # number of the present stretch of asking; odd while it goes on
        self._reset_for = 0
        self._took: deque[float] = deque([self._every], maxlen=RECENT_PLANS)
        self._closing, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def active(self) -> bool:
        return self._run % 2 == 1

    def begin(self) -> None:
        """Ask for plans from now on, in a new episode of the policy."""
        self.chunks.clear()
        self.fault, self.last = None, self._now()
        self._run += not self.active
        self._wake.set()

    def pause(self) -> None:
        """Ask no more; an answer that is under way is thrown away."""
        self._run += self.active

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="planning", daemon=True)
        self._thread.start()

    def close(self, patience: float = 2.0) -> None:
        """Args: patience: seconds for an answer that is under way."""
        self.pause()
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(patience)

    def warm_up(self) -> None:
        """Have a first plan made and throw it away, if anything is seen yet."""
        observed = self.observer.observation()
        if observed is None:
            return
        try:
            self.planner.reset(self.seed, self.text)
            self.planner.plan(observed.entries)
        except Exception as error:  # whatever a planner raises; it is tried again
            log.error("no first plan: %s: %s", type(error).__name__, error)
            return
        self.ready = True
        self._on_ready()

    def step(self) -> None:
        """Ask for one plan. Says in `fault` why there is none."""
        run = self._run
        self.waiting = True
        try:
            if self._reset_for != run:
                self.planner.reset(self.seed, self.text)
                self._reset_for = run
            self._ask(run)
        except Exception as error:  # whatever a planner raises, the arm must hold
            self._statistics.counts["failed_plans"] += 1
            log.error("no plan: %s: %s", type(error).__name__, error)
            if run == self._run or isinstance(error, PlannerError):
                self.fault = Stop(_blame(error), str(error))
        finally:
            self.waiting = False

    def probe(self) -> bool:
        """Whether a server that was lost answers again."""
        try:
            self.planner.reset(self.seed, self.text)
        except PlannerError as error:
            log.debug("the policy does not answer yet: %s", error)
            return False
        if not self.active:
            log.info("the policy answers again")
            self.fault = None
        return True

    def _ask(self, run: int) -> None:
        observed = self.observer.observation()
        if observed is None:
            return
        began = self._now()
        going_on = self.chunks.going_on(observed.time, observed.base, began, max(self._took))
        actions = self.planner.plan(observed.entries, going_on)
        arrived = self._now()
        if run != self._run:
            return
        self._took.append(arrived - began)
        self._statistics.plan.add(arrived - began)
        self._statistics.plan_age.add(arrived - observed.time)
        if self._on_plan is not None:
            self._on_plan(observed.time, arrived, actions)
        description = self.planner.description
        plan = read_plan(actions, description, self._step_seconds, observed.time, observed.base, self._smooth)
        if self.chunks.add(plan, self._now(), *self._told()):
            self.last = arrived

    def _work(self) -> None:
        while not self._closing.is_set():
            if not self.ready:
                self.warm_up()
                self._closing.wait(0.0 if self.ready else PROBE / 5)
            elif self.active and self.fault is None:
                due = self._now() + self._every
                self.step()
                self._closing.wait(max(due - self._now(), 0.001))
            elif not self.active and self.fault is not None and self.fault.reason.passes:
                self.probe()
                self._closing.wait(PROBE)
            else:
                self._wake.wait(PROBE)
                self._wake.clear()


def _blame(error: Exception) -> Reason:
    if isinstance(error, BadPlan):
        return Reason.NAN_ACTION
    answered = getattr(error, "code", None)  # by a server that is there
    if isinstance(error, PlannerError) and answered not in (POLICY_FAILED, BAD_REQUEST):
        return Reason.LOST_SERVER
    return Reason.POLICY_ERROR
