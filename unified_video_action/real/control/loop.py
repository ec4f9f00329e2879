"""The control of an arm by a policy: observe, plan in the background, and command the arm at its own rate.

Three kinds of threads: that of `Control.run`, the only one that touches the arm; that of `Planning`, which asks the
policy; and one for each camera (`Observer`). They share values that are replaced as a whole; a slow one holds up no
other.
"""

from __future__ import annotations

import logging
import queue
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from unified_video_action.real.control.chunks import Chunks
from unified_video_action.real.control.limits import SafetyLimits
from unified_video_action.real.control.observer import Observer
from unified_video_action.real.control.planning import Planning
from unified_video_action.real.control.safety import SafetyFilter, SafetyStop
from unified_video_action.real.control.timing import Pacer, Statistics
from unified_video_action.real.control.watchdog import LoopSettings, Phase, Reason, Stop, implausible
from unified_video_action.real.robots.interface import ArmCommand, ArmState, RobotError, Setup
from unified_video_action.real.robots.recorder import EpisodeRecorder
from unified_video_action.real.serving.client import RemotePlanner

log = logging.getLogger(__name__)

AGAIN = 1.0  # seconds between two tries to go on by itself
FRIGHT = 2.0  # seconds after a stop in which a further Ctrl-C changes nothing
SWITCH = 0.0005  # seconds after which Python lets another thread run; its default is a whole tick of the loop
REQUESTS = {"hold": Reason.HOLD, "quit": Reason.QUIT, "ctrl_c": Reason.CTRL_C, "term": Reason.TERMINATED}


class Control:
    """One run of an arm, from its first state to its end. The arm and the cameras are connected already.

    Args:
        now, sleep: the clock.
        on_ready: called when the policy has made a first plan, which is thrown away.
    """

    def __init__(
        self, setup: Setup, planner: RemotePlanner, limits: SafetyLimits, settings: LoopSettings,
        recorder: EpisodeRecorder | None = None, now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep, on_ready: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        arm = self.arm = setup.arm
        self.settings, self._recorder, self._now, self._sleep = settings, recorder, now, sleep
        self.statistics = Statistics(arm.rate)
        self.requests: queue.SimpleQueue[str] = queue.SimpleQueue()  # hold, quit, ... : see running.py
        self._ahead = max(int(settings.lead * arm.rate), 1)
        noted = partial(self._note, "clip")
        self.safety = SafetyFilter(limits, arm.limits, arm.rate, arm.joints_for, now, noted, self._ahead)
        self.statistics.clipped = self.safety.clipped
        policy, lead = planner.description, settings.lead + settings.latency
        step = settings.step_of(policy)
        self.observer = Observer(policy, setup.cameras, step, now, partial(self._record, "frame"))
        self.chunks = Chunks(policy, step, settings.blend, lead, self.statistics.counts)
        sources = planner, self.observer, self.chunks, settings, self.statistics, lambda: self.safety.commanded, now
        self.planning = Planning(*sources, partial(self._record, "plan"), on_ready)
        self.phase = Phase.READY
        self.stop: Stop | None = None  # the last one, while nobody has resumed
        self.state: ArmState | None = None
        self.ending = False  # the run ends as soon as the arm holds
        self._alone = False  # there is no operator any more
        self._fault: Stop | None = None  # of the arm's state
        self._tried = self._stopped = -np.inf  # when a start was tried, and when the last stop was
        self._began: float | None = None  # the episode

    def run(self) -> Stop:
        """Until the operator, the episode's time or a stop without an operator ends it; returns why it ended."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH)
        self.observer.start()
        pacer, before, statistics = Pacer(self.arm.rate, self._now, self._sleep), None, self.statistics
        try:
            while not (self.ending and self.phase in (Phase.READY, Phase.HOLDING, Phase.RELEASED)):
                ticks, late = pacer.wait()
                begun = self._now()
                if before is not None and self.phase is Phase.RUNNING:
                    statistics.add("period", begun - before)
                    statistics.add("late", late + (ticks - 1) * pacer.period)
                    statistics.counts["missed_deadlines"] += ticks - 1
                    statistics.counts["stalls"] += ticks > self._ahead
                before = begun
                self.tick(pacer.deadline, ticks)
                if self.phase is Phase.RUNNING:
                    statistics.counts["ticks"] += 1
                    statistics.add("work", self._now() - begun)
            return self.stop or Stop(Reason.QUIT)
        except BaseException as error:
            self._note("stop", f"internal: {error!r}")
            raise
        finally:
            if self.phase is not Phase.RELEASED:
                self.arm.stop()
                if self.settings.release_on_exit:
                    try:
                        self.arm.release()
                    except RobotError as error:
                        log.error("not released: %s", error)
            self.planning.close()
            self.observer.close()
            sys.setswitchinterval(interval)

    def tick(self, deadline: float, ticks: int = 1) -> None:
        """The work at one deadline, which stands for `ticks` of them."""
        fault = self._fault = self._read_state()
        while not self.requests.empty():
            self._answer(self.requests.get())
        when = deadline + self.settings.lead
        if self.phase is Phase.RUNNING:
            fault = fault or self._watch(ticks / self.arm.rate)
            if fault is not None:
                self._stop(fault)
            else:
                self._follow(when, ticks)
        elif self.phase is Phase.BRAKING and fault is not None:
            self._hold(fault)
        if self.phase is Phase.BRAKING:
            self._brake(when, ticks)
        elif self.phase is Phase.HOLDING and self._may_resume():
            self.start()
        if self.phase not in (Phase.RUNNING, Phase.BRAKING):
            self.ending |= self._alone and not self._resumes
        self.planning.tick()

    def start(self) -> bool:
        """Begin, or go on: the arm moves from now on. False, with a message, where something is amiss."""
        if self.phase in (Phase.RUNNING, Phase.BRAKING):
            return False
        now = self._tried = self._now()
        if not self.planning.ready:
            log.warning("not started: the policy has made no plan yet; wait until it is ready")
            return False
        fault = self._fault or self.settings.timeouts.frames(now, self.observer.newest_frames())
        try:
            if fault is None:
                self.safety.begin(self.state)
        except SafetyStop as stop:
            fault = stop
        if fault is not None:
            log.warning("not started: %s", fault)
            return False
        if self.phase is Phase.RELEASED:
            self.arm.stop()  # take hold
        self.observer.begin(self.state)
        if self._began is None:
            self._began = now
        self.stop, self.phase = None, Phase.RUNNING
        self.planning.begin()
        self._note("start", "started")
        log.info("started: the arm moves. hold | quit, then Enter; Ctrl-C holds at once")
        return True

    def _answer(self, asked: str) -> None:
        moving = self.phase in (Phase.RUNNING, Phase.BRAKING)
        if asked == "gone":
            self._alone = True
        elif asked == "release":
            self._release(moving)
        elif asked == "start" and self.phase is not Phase.READY:
            log.warning("Enter starts an episode, and this one is under way; type resume to go on")
        elif asked in ("start", "resume"):
            self.start()
        elif asked not in REQUESTS:
            log.warning("%r is none of: Enter, hold, resume, release, quit", asked)
        elif self.phase is Phase.RUNNING:
            self._stop(Stop(REQUESTS[asked]))
        elif asked in ("hold", "ctrl_c") and self._resumes:
            self._report(Stop(REQUESTS[asked]))  # from now on only the operator resumes
        elif asked == "ctrl_c" and self._now() - self._stopped < FRIGHT:
            log.warning("the arm holds, or is about to; Ctrl-C again in a moment ends the run")
        elif asked != "hold":  # the arm holds already, or is about to: this ends the run
            self.stop = self.stop or Stop(REQUESTS[asked])
            self.ending = True

    def _release(self, moving: bool) -> None:
        if moving:
            log.warning("not released: the arm moves; hold first")
            return
        try:
            self.arm.release()
        except RobotError as error:
            log.error("not released: %s", error)
            return
        self.phase = Phase.RELEASED
        self.safety.forget()
        self._note("release", "released")
        log.warning("released: the arm can be moved by hand. resume | quit, then Enter")

    @property
    def _resumes(self) -> bool:
        """Without the operator, once the reason of the stop has passed."""
        if not self.settings.auto_resume or self.phase not in (Phase.BRAKING, Phase.HOLDING):
            return False
        return all(each.reason.passes for each in (self.stop, self.planning.fault) if each is not None)

    def _may_resume(self) -> bool:
        """Without the operator, now."""
        free = not self.planning.waiting and not self.ending and self._now() - self._tried > AGAIN
        return self._resumes and self.planning.fault is None and free

    def _read_state(self) -> Stop | None:
        """Take the arm's state in, unless something is wrong with it."""
        try:
            state = self.arm.state()
        except RobotError as error:
            self.state = None
            return Stop(Reason.ARM_ERROR, str(error))
        before, self.state = self.state, state
        fault, age = implausible(before, state, self.arm.limits), self._now() - state.time
        if fault is None and age > self.settings.timeouts.state:
            fault = Stop(Reason.STALE_STATE, f"{age:.3f} s old")
        if fault is None or self.phase is Phase.RELEASED:
            self.observer.add_state(state)
        if before is None or state.time > before.time:
            self._record("state", state)
        return fault

    def _watch(self, seconds: float) -> Stop | None:
        """What must end the motion, so many seconds after the tick before."""
        now, trajectory, timeouts = self._now(), self.chunks.trajectory, self.settings.timeouts
        limit, ends = self.settings.episode_seconds, None if trajectory is None else trajectory.end
        if seconds > timeouts.overrun:
            return Stop(Reason.OVERRUN, f"for {seconds:.3f} s")
        if self.planning.fault is not None:
            return self.planning.fault
        if limit is not None and now - self._began > limit:
            return Stop(Reason.TIME_LIMIT, f"{limit:g} s")
        fault = timeouts.frames(now, self.observer.newest_frames())
        plans = self.planning
        return fault or timeouts.plans(now, plans.answered, plans.last, ends, plans.late, plans.waiting)

    def _follow(self, when: float, ticks: int) -> None:
        trajectory = self.chunks.trajectory
        target = self.safety.commanded if trajectory is None else trajectory.at(when + self.settings.latency)
        try:
            self._send(when, *self.safety.follow(*target, self.state.pose, ticks))
        except SafetyStop as stop:
            self._stop(Stop(Reason.NAN_ACTION if stop.rule == "finite" else Reason.SAFETY_STOP, str(stop)))

    def _brake(self, when: float, ticks: int) -> None:
        try:
            self._send(when, *self.safety.brake(ticks))
        except SafetyStop as stop:
            self._hold(Stop(Reason.SAFETY_STOP, str(stop)))
        if self.phase is Phase.BRAKING and self.safety.at_rest:
            self._hold()

    def _send(self, when: float, pose: np.ndarray, gripper: float) -> None:
        command = ArmCommand(when, pose, gripper)
        try:
            self.arm.command(command)
        except RobotError as error:
            self._hold(Stop(Reason.ARM_ERROR, str(error)))
            return
        self._record("command", command, self._now())

    def _stop(self, stop: Stop) -> None:
        """Begin to brake, or hold at once where the arm cannot be trusted."""
        self.planning.pause()
        if stop.reason.brakes:
            self._report(stop)
            self.phase = Phase.BRAKING
        else:
            self._hold(stop)

    def _hold(self, stop: Stop | None = None) -> None:
        self.planning.pause()
        self.arm.stop()
        self.phase = Phase.HOLDING
        if stop is not None:
            self._report(stop)
        if not (self.ending or self._alone):
            log.warning("the arm holds. resume | release | quit, then Enter")

    def _report(self, stop: Stop) -> None:
        self.stop, self._stopped = stop, self._now()
        self.ending |= stop.reason in (Reason.QUIT, Reason.TIME_LIMIT, Reason.TERMINATED)
        log.warning("STOP %s", stop)
        self.statistics.stops.append({"reason": stop.reason.title, "detail": stop.detail, "time": self._stopped})
        self._note("stop", str(stop))

    def _note(self, kind: str, text: str) -> None:
        self._record("event", self._now(), kind, text)

    def _record(self, what: str, *values: object) -> None:
        if self._recorder is not None:
            getattr(self._recorder, what)(*values)
