"""Why a run stops, what must stay fresh and plausible while the arm moves, and the settings of the loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from unified_video_action.real.control.limits import require_numbers
from unified_video_action.real.control.trajectory import apart
from unified_video_action.real.planner import PolicyDescription
from unified_video_action.real.robots.interface import ArmLimits, ArmState

# What an arm can do between two states; farther is a fault of its sensors or its driver, not a motion.
FASTEST, FASTEST_SPIN = 3.0, 20.0  # metres and radians per second of the end effector
FASTEST_JOINTS = 2.0  # share of the maker's joint velocities
NOISE = 0.02  # metres, and radians, on top, for times that are not exact, too


class Phase(Enum):
    READY = "ready"
    RUNNING = "running"
    BRAKING = "braking"
    HOLDING = "holding"
    RELEASED = "released"


class Reason(Enum):
    """Why the arm was stopped: what it is called, what the operator reads, and the exit code if that ends the run.

    `brakes`: the arm follows a braking motion that was checked beforehand, then holds. Otherwise its driver's own stop
    is used at once, because what is known of the arm cannot be trusted.
    `passes`: it may mend itself, and --auto-resume goes on when it has.
    """

    def __init__(self, title: str, text: str, code: int, brakes: bool = True, passes: bool = False) -> None:
        self.title, self.text, self.code, self.brakes, self.passes = title, text, code, brakes, passes

    QUIT = "quit", "the operator ended the run", 0
    TIME_LIMIT = "time_limit", "the episode's time is over", 0
    HOLD = "hold", "the operator asked for it", 0
    CTRL_C = "ctrl_c", "Ctrl-C", 130
    TERMINATED = "terminated", "the program was asked to end (SIGTERM, SIGHUP)", 143
    LOST_SERVER = "lost_server", "the policy's server does not answer", 20, True, True
    NO_ACTION = "no_action", "plans come too late: there is nothing left to do", 21, True, True
    DEAD_CAMERA = "dead_camera", "a camera delivers no frames", 22, True, True
    POLICY_ERROR = "policy_error", "the policy failed", 23
    NAN_ACTION = "nan_action", "an action of the policy is not finite", 24
    SAFETY_STOP = "safety_stop", "a safety rule that is set to stop was broken", 25
    STALE_STATE = "stale_state", "the arm's state is old", 30, False
    TELEPORT = "teleport", "the arm's state jumped farther than the arm can move", 31, False
    ARM_ERROR = "arm_error", "the arm does not answer", 32, False
    OVERRUN = "overrun", "the control loop was held up", 33, False


@dataclass(frozen=True)
class Stop:
    reason: Reason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason.title}: {self.reason.text}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Timeouts:
    """How old things may become, seconds, before the arm is stopped. Raises ValueError for one that is not positive."""

    frame: float = 0.5  # the newest frame of any camera
    state: float = 0.1  # the arm's newest state
    action: float = 0.2  # since the last action of the newest plan was due
    plan: float = 2.0  # since the newest plan of use came, while the policy is asked for more
    overrun: float = 0.1  # between two ticks of the control loop

    def __post_init__(self) -> None:
        require_numbers(self, *vars(self))

    def frames(self, now: float, newest: list[float]) -> Stop | None:
        """`newest`: when each camera's newest frame was taken."""
        for camera, taken in enumerate(newest):
            if now - taken > self.frame:
                age = "none came" if np.isinf(taken) else f"the newest is {now - taken:.2f} s old"
                return Stop(Reason.DEAD_CAMERA, f"camera {camera}: {age}")
        return None

    def plans(
        self, now: float, answered: float, last: float, ends: float | None, late: float, waiting: bool
    ) -> Stop | None:
        """Args: when the last plan came, or the run began; the same of a plan of use, some of whose actions were not
        over; when its last action is due (None: no such plan); how long after its frame the last plan came; and
        whether one is being waited for."""
        if now - answered > self.plan:
            return Stop(Reason.LOST_SERVER if waiting else Reason.NO_ACTION, f"{now - answered:.2f} s without a plan")
        if now - last > self.plan:
            text = f"plans arrive {late:.2f} s after their frame, later than their last action"
            return Stop(Reason.NO_ACTION, text)
        if ends is not None and now - ends > self.action:
            return Stop(Reason.NO_ACTION, f"the last action was due {now - ends:.2f} s ago; plans are too slow")
        return None


def implausible(before: ArmState | None, state: ArmState, limits: ArmLimits) -> Stop | None:
    """What is wrong with a state, given the one before."""
    for name, value in vars(state).items():
        if not np.isfinite(value).all():
            return Stop(Reason.ARM_ERROR, f"its state's {name} is not finite")
    if before is None or state.time < before.time:  # one of long ago says nothing of a jump; its age counts
        return None
    elapsed = state.time - before.time
    way, turn = apart(before.pose, state.pose)
    if way > FASTEST * elapsed + NOISE or turn > FASTEST_SPIN * elapsed + NOISE:
        return Stop(Reason.TELEPORT, f"{way:.3f} m and {turn:.3f} rad in {elapsed * 1e3:.1f} ms")
    joints = np.abs(state.joints - before.joints)
    beyond = joints - limits.joint_velocity * FASTEST_JOINTS * elapsed - NOISE
    if (beyond > 0).any():
        worst = int(beyond.argmax())
        return Stop(Reason.TELEPORT, f"joint {worst + 1} by {joints[worst]:.3f} rad in {elapsed * 1e3:.1f} ms")
    return None


@dataclass(frozen=True)
class LoopSettings:
    """The `loop` section of a robot's configuration.

    Raises:
        ValueError: a field that makes no sense, with its name.
    """

    plan_rate: float = 8.0  # plans per second at most
    lead: float = 0.02  # seconds by which commands are sent ahead of their time
    latency: float = 0.0  # seconds by which the arm is late all the same: targets are taken so much ahead
    blend: str = "ensemble"  # see chunks.py
    smooth: int = 1  # actions that are averaged, an odd number; 3 as published
    step_seconds: float | None = None  # between two actions; None: the policy's
    episode_seconds: float | None = None  # None: until the operator ends it
    auto_resume: bool = False
    release_on_exit: bool = False
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        require_numbers(self, "plan_rate", "lead", "step_seconds", "episode_seconds")
        if not 0 <= self.latency < 1:
            raise ValueError(f"latency: {self.latency!r}, expected seconds from 0 to 1")

    def step_of(self, policy: PolicyDescription) -> float:
        """Seconds between two actions. Raises ValueError where nobody says."""
        step = self.step_seconds or policy.step_seconds
        if step is None:
            raise ValueError("loop.step_seconds: the policy does not say how far apart its actions are; give it here")
        return step
