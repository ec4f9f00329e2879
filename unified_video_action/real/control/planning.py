"""The requests to a policy for action chunks, and why there is none."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait

import numpy as np

from unified_video_action.real.control.chunks import BadPlan, Chunks, read_chunk
from unified_video_action.real.control.observer import Observer
from unified_video_action.real.control.timing import Statistics
from unified_video_action.real.control.watchdog import LoopSettings, Reason, Stop
from unified_video_action.real.planner import PlannerError
from unified_video_action.real.serving.client import RemotePlanner

log = logging.getLogger(__name__)

RECENT_PLANS = 10  # whose slowest is how long the next may take
PROBE = 0.5  # seconds between two tries to reach a lost server
FIRST = 0.1  # seconds between two tries to have a first plan made
POLICYS_FAULT = ("bad_request", "policy_failed")  # codes of a server that answers
PATIENCE = 2.0  # seconds for an answer under way when all ends


class Planning:
    """Asks for one chunk after another, in a thread of its own. `tick`, called by the loop, never waits.

    Args:
        commanded: the pose (4, 4) and gripper width that the arm was sent last.
        on_plan: receives the time of the newest frame, that of the chunk's arrival, and the actions (A, D).
        on_ready: called when the policy has made a first plan, which is thrown away.
    """

    def __init__(
        self, planner: RemotePlanner, observer: Observer, chunks: Chunks, settings: LoopSettings,
        statistics: Statistics, commanded: Callable[[], tuple[np.ndarray, float]], now: Callable[[], float],
        on_plan: Callable[[float, float, np.ndarray], None], on_ready: Callable[[], None],
    ) -> None:  # fmt: skip
        self.planner, self.observer, self.chunks, self.statistics = planner, observer, chunks, statistics
        self.text: str | None = None  # the instruction
        self.seed = 0
        self.fault: Stop | None = None  # why there is no plan
        self.answered = self.last = -np.inf  # when a plan, and one of use, came, or the asking began
        self.late = 0.0  # seconds from its frame to the newest plan
        self.ready = False  # it has planned once: the first plan may take long, and nobody waits for it in motion
        self._step, self._smooth = settings.step_of(planner.description), settings.smooth
        self._every = 1.0 / settings.plan_rate
        self._commanded, self._now, self._on_plan, self._on_ready = commanded, now, on_plan, on_ready
        self._stretch: object | None = None  # of asking, from a start to a stop; None: not asked
        self._reset_for: object | None = None
        self._took: deque[float] = deque([self._every], maxlen=RECENT_PLANS)
        self._due = -np.inf
        self.executor: Executor = ThreadPoolExecutor(1, "planning")  # of requests to the policy
        self._future: Future | None = None

    @property
    def waiting(self) -> bool:
        return self._future is not None and not self._future.done()

    def begin(self) -> None:
        """Ask from now on, in a new episode of the policy."""
        self.chunks.clear()
        self.answered = self.last = self._now()
        self.fault, self._due, self._stretch = None, -np.inf, object()

    def pause(self) -> None:
        """Ask no more; an answer that is under way is thrown away."""
        self._stretch = None

    def close(self) -> None:
        self.pause()
        if self._future is not None:
            wait([self._future], PATIENCE)
        self.executor.shutdown(wait=False, cancel_futures=True)

    def tick(self) -> None:
        """Start the next request if it is due."""
        if self.waiting or self._now() < self._due:
            return
        if not self.ready:
            job, every = self._warm_up, FIRST
        elif self._stretch is not None and self.fault is None:
            job, every = self._ask, self._every
        elif self._stretch is None and self.fault is not None and self.fault.reason.passes:
            job, every = self._probe, PROBE
        else:
            return
        self._due = self._now() + every
        self._future = self.executor.submit(job, self._stretch)

    def _warm_up(self, _: object) -> None:
        """Have a first plan made and throw it away, if there is an observation yet."""
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

    def _probe(self, _: object) -> None:
        """See whether a server that was lost answers again."""
        try:
            self.planner.reset(self.seed, self.text)
        except Exception as error:  # whatever a planner raises; it is tried again
            level = logging.DEBUG if isinstance(error, PlannerError) else logging.ERROR
            log.log(level, "the policy does not answer yet: %s: %s", type(error).__name__, error)
            return
        if self._stretch is None:
            log.info("the policy answers again")
            self.fault = None

    def _ask(self, stretch: object) -> None:
        """Ask for one chunk; `fault` says why there is none."""
        try:
            if self._reset_for is not stretch:
                self.planner.reset(self.seed, self.text)
                self._reset_for = stretch
            self._plan(stretch)
        except Exception as error:  # whatever a planner raises, the arm must hold
            self.statistics.counts["failed_plans"] += 1
            log.error("no plan: %s: %s", type(error).__name__, error)
            if stretch is self._stretch or isinstance(error, PlannerError):
                self.fault = Stop(_blame(error), str(error))

    def _plan(self, stretch: object) -> None:
        observed = self.observer.observation()
        if observed is None:
            return
        began = self._now()
        continuation = self.chunks.continuation(observed.time, observed.base, began + max(self._took))
        actions = self.planner.plan(observed.entries, continuation)
        arrived = self._now()
        if stretch is not self._stretch:
            return
        self.answered, self.late = arrived, arrived - observed.time
        self._took.append(arrived - began)
        self.statistics.add("plan", arrived - began)
        self.statistics.add("plan_age", self.late)
        self._on_plan(observed.time, arrived, actions)
        policy = self.planner.description
        chunk = read_chunk(actions, policy, self._step, observed.time, observed.base, self._smooth)
        if self.chunks.add(chunk, self._now(), *self._commanded()):
            self.last = arrived


def _blame(error: Exception) -> Reason:
    if isinstance(error, BadPlan):
        return Reason.NAN_ACTION
    if isinstance(error, PlannerError) and error.code not in POLICYS_FAULT:
        return Reason.LOST_SERVER
    return Reason.POLICY_ERROR
