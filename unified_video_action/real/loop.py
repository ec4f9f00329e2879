"""The control of an arm by a policy: observe, plan in the background, and command the arm at its own rate.

Three kinds of threads: that of `Control.run`, the only one that touches the arm; `Planning`, which asks the policy; and
one for each camera (`Observer`). They share values that are replaced as a whole; a slow one holds up no other.
"""

from __future__ import annotations

import logging
import queue
import sys
import time
from collections.abc import Callable
from enum import Enum

import numpy as np

from unified_video_action.real.chunks import Chunks
from unified_video_action.real.clock import Pacer
from unified_video_action.real.limits import SafetyLimits
from unified_video_action.real.observer import Observer
from unified_video_action.real.planner import Planner
from unified_video_action.real.planning import Planning
from unified_video_action.real.recorder import EpisodeRecorder
from unified_video_action.real.robot import ArmCommand, ArmState, RobotError, Setup
from unified_video_action.real.safety import Safety, SafetyStop
from unified_video_action.real.statistics import Statistics
from unified_video_action.real.watchdog import LoopSettings, Reason, Stop, Watchdog, step_seconds_of

log = logging.getLogger(__name__)

AGAIN = 1.0  # seconds between two tries to go on by itself
FRIGHT = 2.0  # seconds after a stop in which a further Ctrl-C changes nothing
SWITCH = 0.0005  # seconds after which Python lets another thread run; its default is a whole tick of the loop


class Phase(Enum):
    READY = "ready"
    RUNNING = "running"
    BRAKING = "braking"
    HOLDING = "holding"
    RELEASED = "released"


class Control:
    """One run of an arm, from its first state to its end. The arm and the cameras are connected already.

    Args:
        now, sleep: the clock.
        on_ready: called when the policy has made a first plan, which is thrown away.
    """

    def __init__(
        self,
        setup: Setup,
        planner: Planner,
        limits: SafetyLimits,
        settings: LoopSettings,
        recorder: EpisodeRecorder | None = None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.arm, self.settings, self.recorder = setup.arm, settings, recorder
        self.statistics = Statistics(setup.arm.rate)
        self.requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._ahead = max(int(settings.lead * self.arm.rate), 1)
        self.safety = Safety(
            limits,
            self.arm.limits,
            self.arm.rate,
            self.arm.joints_for,
            self.statistics.clipped,
            now,
            on_clip=lambda text: self._note("clip", text),
            ahead=self._ahead,
        )
        step_seconds = step_seconds_of(planner.description, settings)
        on_frame = None if recorder is None else recorder.frame
        self.observer = Observer(planner.description, setup.cameras, step_seconds, now, on_frame)
        ahead = settings.lead + settings.latency
        self.chunks = Chunks(planner.description, step_seconds, settings.blend, ahead, self.statistics.counts)
        self.planning = Planning(
            planner,
            self.observer,
            self.chunks,
            step_seconds,
            settings.plan_rate,
            settings.smooth,
            self.statistics,
            told=lambda: self._told,
            now=now,
            on_plan=None if recorder is None else recorder.plan,
            on_ready=on_ready,
        )
        self.watchdog = Watchdog(settings.timeouts)
        self.phase = Phase.READY
        self.stop: Stop | None = None  # the last one, while nobody has resumed
        self.state: ArmState | None = None
        self.alone = False  # nobody is there to answer
        self._now, self._sleep = now, sleep
        self._told: tuple[np.ndarray, float] = (np.eye(4), 0.0)
        self._fault: Stop | None = None  # of the arm's state
        self._ending = False
        self._tried = self._stopped = -np.inf  # when a start was tried, and when the last stop was
        self._began: float | None = None  # the episode

    def run(self) -> Stop:
        """Until the operator, the episode's time or a stop without an operator ends it; returns why it ended."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH)
        self.observer.start()
        self.planning.start()
        pacer, before = Pacer(self.arm.rate, self._now, self._sleep), None
        try:
            while not (self._ending and self.phase in (Phase.READY, Phase.HOLDING, Phase.RELEASED)):
                ticks, late = pacer.wait()
                begun = self._now()
                if before is not None and self.phase is Phase.RUNNING:
                    self.statistics.period.add(begun - before)
                    self.statistics.late.add(late + (ticks - 1) * pacer.period)
                    self.statistics.counts["missed_deadlines"] += ticks - 1
                    self.statistics.counts["stalls"] += ticks > self._ahead
                before = begun
                self.tick(pacer.deadline, ticks)
                if self.phase is Phase.RUNNING:
                    self.statistics.counts["ticks"] += 1
                    self.statistics.work.add(self._now() - begun)
            return self.stop or Stop(Reason.QUIT)
        except BaseException as error:
            self._note("stop", f"internal: {error!r}")
            raise
        finally:
            if self.phase is not Phase.RELEASED:
                self.arm.stop()
            if self.settings.release_on_exit and self.phase is not Phase.RELEASED:
                self.arm.release()
            self.planning.close()
            self.observer.close()
            sys.setswitchinterval(interval)

    def tick(self, deadline: float, ticks: int = 1) -> None:
        """What is done at one deadline, which stands for `ticks` of them."""
        fault = self._fault = self._read_state()
        self._answer_requests()
        if self.phase is Phase.RUNNING:
            fault = fault or self.watchdog.ticks(ticks / self.arm.rate) or self._watch()
            if fault is not None:
                self._stop(fault)
            else:
                self._follow(deadline + self.settings.lead, ticks)
        elif self.phase is Phase.BRAKING and fault is not None:
            self._hold(fault)
        if self.phase is Phase.BRAKING:
            self._brake(deadline + self.settings.lead, ticks)
        elif self.phase is Phase.HOLDING and self._may_resume():
            self.start()

    def start(self) -> bool:
        """Begin, or go on: the arm moves from now on. False, with a message, where something is amiss."""
        if self.phase in (Phase.RUNNING, Phase.BRAKING):
            return False
        now = self._tried = self._now()
        if not self.planning.ready:
            log.warning("not started: the policy has made no plan yet; wait until it is ready")
            return False
        fault = self._fault or self.watchdog.frames(now, self.observer.newest_frames())
        if fault is not None:
            log.warning("not started: %s", fault)
            return False
        try:
            self.safety.begin(self.state)
        except SafetyStop as stop:
            log.warning("not started: %s", stop)
            return False
        if self.phase is Phase.RELEASED:
            self.arm.stop()  # take hold
        self.observer.forget_states()
        self.observer.add_state(self.state)
        if self._began is None:
            self._began = now
            self.observer.begin(self.state.pose)
        self._told = self.safety.told
        self.stop, self.phase = None, Phase.RUNNING
        self.planning.begin()
        self._note("start", "started")
        log.info("started: the arm moves. hold | quit, then Enter; Ctrl-C holds at once")
        return True

    def _answer_requests(self) -> None:
        """See running.py for what the operator may ask for."""
        while not self.requests.empty():
            asked = self.requests.get()
            moving = self.phase in (Phase.RUNNING, Phase.BRAKING)
            reason = {"hold": Reason.HOLD, "quit": Reason.QUIT, "ctrl_c": Reason.CTRL_C, "term": Reason.TERMINATED}
            if asked == "gone":
                self.alone = True
                self._ending |= not moving and not self.settings.auto_resume
            elif asked == "release":
                self._release(moving)
            elif asked == "start" and self.phase is not Phase.READY:
                log.warning("Enter starts an episode, and this one is under way; type resume to go on")
            elif asked in ("start", "resume"):
                self.start()
            elif asked not in reason:
                log.warning("%r is none of: Enter, hold, resume, release, quit", asked)
            elif self.phase is Phase.RUNNING:
                self._stop(Stop(reason[asked]))
            elif asked == "ctrl_c" and self._now() - self._stopped < FRIGHT:
                log.warning("the arm holds, or is about to; Ctrl-C again in a moment ends the run")
            elif asked != "hold":  # the arm holds already, or is about to: this ends the run
                self.stop = self.stop or Stop(reason[asked])
                self._ending = True

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
        self._note("release", "released")
        log.warning("released: the arm can be moved by hand. resume | quit, then Enter")

    def _may_resume(self) -> bool:
        """Without the operator."""
        if not (self.settings.auto_resume and self.stop is not None and self.stop.reason.passes) or self._ending:
            return False
        if self.planning.fault is not None or self.planning.waiting:
            return False
        return self._now() - self._tried > AGAIN

    def _read_state(self) -> Stop | None:
        """Take the arm's state in, unless something is wrong with it."""
        try:
            state = self.arm.state()
        except RobotError as error:
            self.state = None
            return Stop(Reason.ARM_ERROR, str(error))
        before = self.state
        fault = self.settings.plausibility.fault(before, state, self.arm.limits)
        if fault is None:
            fault = self.watchdog.state(self._now(), state)
        self.state = state
        if fault is None or self.phase is Phase.RELEASED:
            self.observer.add_state(state)
        if self.recorder is not None and (before is None or state.time > before.time):
            self.recorder.state(state)
        return fault

    def _watch(self) -> Stop | None:
        now, trajectory = self._now(), self.chunks.trajectory
        ends = None if trajectory is None else trajectory.end
        if self.planning.fault is not None:
            return self.planning.fault
        limit = self.settings.episode_seconds
        if limit is not None and now - self._began > limit:
            return Stop(Reason.TIME_LIMIT, f"{limit:g} s")
        return self.watchdog.frames(now, self.observer.newest_frames()) or self.watchdog.plans(
            now, self.planning.last, ends, self.planning.waiting
        )

    def _follow(self, when: float, ticks: int) -> None:
        target = self.chunks.at(when + self.settings.latency) or self._told
        try:
            self._send(when, *self.safety.follow(*target, self.state.pose, ticks))
        except SafetyStop as stop:
            self._stop(Stop(Reason.NAN_ACTION if stop.rule == "finite" else Reason.SAFETY_STOP, str(stop)))

    def _brake(self, when: float, ticks: int) -> None:
        try:
            self._send(when, *self.safety.brake(ticks))
        except SafetyStop as stop:
            self._hold(Stop(Reason.SAFETY_STOP, str(stop)))
            return
        if self.phase is Phase.BRAKING and self.safety.at_rest:
            self._hold()

    def _send(self, when: float, pose: np.ndarray, gripper: float) -> None:
        command = ArmCommand(when, pose, gripper)
        try:
            self.arm.command(command)
        except RobotError as error:
            self._hold(Stop(Reason.ARM_ERROR, str(error)))
            return
        self._told = pose, gripper
        if self.recorder is not None:
            self.recorder.command(command, self._now())

    def _stop(self, stop: Stop) -> None:
        """Begin to brake, or hold at once where the arm cannot be trusted."""
        self.planning.pause()
        if self.phase is Phase.RUNNING and stop.reason.brakes:
            self._tell(stop)
            self.phase = Phase.BRAKING
        else:
            self._hold(stop)

    def _hold(self, stop: Stop | None = None) -> None:
        self.planning.pause()
        self.arm.stop()
        self.phase = Phase.HOLDING
        if stop is not None:
            self._tell(stop)
        if self.alone and not self.settings.auto_resume:
            self._ending = True
        if not self._ending:
            log.warning("the arm holds. resume | release | quit, then Enter")

    def _tell(self, stop: Stop) -> None:
        self.stop, self._stopped = stop, self._now()
        if stop.reason in (Reason.QUIT, Reason.TIME_LIMIT, Reason.TERMINATED):
            self._ending = True
        log.warning("STOP %s", stop)
        self.statistics.stops.append({"reason": stop.reason.title, "detail": stop.detail, "time": self._now()})
        self._note("stop", str(stop))

    def _note(self, kind: str, text: str) -> None:
        if self.recorder is not None:
            self.recorder.event(self._now(), kind, text)
