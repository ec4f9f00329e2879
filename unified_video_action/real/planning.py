"""The thread that asks a policy for plans, and says why there is none."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from unified_video_action.real.chunks import BadPlan, Chunks, read_plan
from unified_video_action.real.observer import Observer
from unified_video_action.real.planner import Planner, PlannerError
from unified_video_action.real.serving.requests import BAD_REQUEST, POLICY_FAILED
from unified_video_action.real.statistics import Statistics
from unified_video_action.real.watchdog import Reason, Stop

log = logging.getLogger(__name__)

RECENT_PLANS = 10  # whose slowest tells how long the next may take
PROBE = 0.5  # seconds between two tries to reach a lost server


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
