"""What would be sent to an arm, before anything is: plans from what it sees now, through the safety filter.

The arm stays where it is and gets no command. Each plan is followed to its end by an arm that is thought to be perfect,
and what would have gone out is shown and written down. The operator's yes is kept as a confirmation for this robot's
configuration and this policy; `eval_real.py run` moves an arm only with one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unified_video_action.poses import to_vector
from unified_video_action.real.control.chunks import BadPlan, read_chunk
from unified_video_action.real.control.limits import SafetyLimits
from unified_video_action.real.control.observer import Observed, Observer
from unified_video_action.real.control.safety import SafetyFilter, SafetyStop, shown
from unified_video_action.real.control.trajectory import Trajectory
from unified_video_action.real.control.watchdog import LoopSettings, implausible
from unified_video_action.real.planner import PolicyDescription
from unified_video_action.real.robots.interface import ArmState, RobotError, Setup
from unified_video_action.real.serving.client import RemotePlanner

LOOK = 0.01  # seconds between two states that are read while waiting
PATIENCE = 10.0  # seconds for the first frames
CONVENIENT = ("episode_seconds", "auto_resume", "release_on_exit")  # of `loop`: they change nothing that is sent


@dataclass
class Rehearsal:
    """The commands that one plan would have led to."""

    poses: list[np.ndarray] = field(default_factory=list)  # (4, 4), one a tick
    grippers: list[float] = field(default_factory=list)
    clipped: Counter[str] = field(default_factory=Counter)
    stop: str | None = None  # why the arm would have been stopped

    def line(self, rate: float) -> str:
        """For the operator."""
        if not self.poses:
            return f"would be stopped at once: {self.stop}"
        way = np.stack([pose[:3, 3] for pose in self.poses])
        speed = np.linalg.norm(np.diff(way, axis=0), axis=1).max(initial=0.0) * rate
        clips = ", ".join(f"{rule} {ticks}" for rule, ticks in sorted(self.clipped.items()) if rule != "acceleration")
        return (
            f"{len(way) / rate:.2f} s from {shown(way[0])} to {shown(way[-1])} m, between {shown(way.min(0))} and "
            f"{shown(way.max(0))}, at most {speed:.3f} m/s, gripper {min(self.grippers) * 1e3:.0f} to "
            f"{max(self.grippers) * 1e3:.0f} mm; ticks clipped: {clips or 'none'}"
            + (f"; WOULD BE STOPPED: {self.stop}" if self.stop else "")
        )


def rehearse(
    setup: Setup, planner: RemotePlanner, limits: SafetyLimits, settings: LoopSettings,
    text: str | None = None, seed: int = 0,
    now: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
) -> list[Rehearsal]:  # fmt: skip
    """Plan from what is seen now. The arm and its cameras are connected; the arm is only read.

    Raises:
        RobotError: it sees nothing, or its state makes no sense. PlannerError: there is no plan.
        SafetyStop: the arm stands where it must not start.
    """
    policy, arm, found = planner.description, setup.arm, []
    step = settings.step_of(policy)
    observer = Observer(policy, setup.cameras, step, now)
    observer.start()
    try:
        planner.reset(seed, text)
        for _ in range(3):
            observed, state = _look(observer, setup, now, sleep)
            safety = SafetyFilter(limits, arm.limits, arm.rate, arm.joints_for, now)
            safety.begin(state)
            actions = planner.plan(observed.entries)
            try:
                chunk = read_chunk(actions, policy, step, observed.time, observed.base, settings.smooth)
                found.append(_followed(chunk, safety, arm.rate))
            except BadPlan as error:
                found.append(Rehearsal(stop=str(error)))
        return found
    finally:
        observer.close()


def _look(
    observer: Observer, setup: Setup, now: Callable[[], float], sleep: Callable[[float], None]
) -> tuple[Observed, ArmState]:
    """An observation with a whole history, and the newest state."""
    began, before = now(), None
    while now() - began <= observer.reach + PATIENCE:
        state = setup.arm.state()
        if fault := implausible(before, state, setup.arm.limits):
            raise RobotError(str(fault))
        before = state
        observer.add_state(state)
        if now() - began > observer.reach and (observed := observer.observation()) is not None:
            return observed, state
        sleep(LOOK)
    raise RobotError(f"no frames of all cameras within {PATIENCE:g} s")


def _followed(chunk: Trajectory, safety: SafetyFilter, rate: float) -> Rehearsal:
    """By a perfect arm, from its first action to its last."""
    rehearsal, (pose, _) = Rehearsal(clipped=safety.clipped), safety.commanded
    try:
        for tick in range(int((chunk.end - chunk.times[0]) * rate) + 1):
            pose, gripper = safety.follow(*chunk.at(chunk.times[0] + tick / rate), pose)
            rehearsal.poses.append(pose)
            rehearsal.grippers.append(gripper)
    except SafetyStop as stop:
        rehearsal.stop = str(stop)
    return rehearsal


def write_report(path: Path, rehearsals: list[Rehearsal], rate: float) -> None:
    """Write the commands as JSON: per plan its poses, position and axis-angle, one for every tick."""
    plans = [
        {
            "poses": to_vector(np.stack(each.poses)).round(6).tolist() if each.poses else [],
            "grippers": np.round(each.grippers, 6).tolist(),
            "clipped": each.clipped,
            "stop": each.stop,
        }
        for each in rehearsals
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rate": rate, "plans": plans}) + "\n")


def digest(robot: Mapping[str, Any], policy: PolicyDescription) -> str:
    """Names a robot's configuration and a policy, with its checkpoint's files; another of either has another name."""
    loop = {key: value for key, value in robot["loop"].items() if key not in CONVENIENT}
    named = {"robot": {**robot, "loop": loop}, "policy": policy.to_json()}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:24]


def confirm(folder: Path, name: str, about: Mapping[str, Any]) -> Path:
    """Keep the operator's yes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"confirmed": time.strftime("%Y-%m-%d %H:%M:%S"), **about}, indent=1) + "\n")
    return path


def require_confirmation(folder: Path, name: str, command: str) -> None:
    """Raises ValueError, with the command to type, where there was no confirmed dry run."""
    if not (folder / f"{name}.json").is_file():
        raise ValueError(
            "no dry run of this robot's configuration with this policy was confirmed (a change of either asks for a "
            f"new one). Look at what would be sent first:\n\n    {command}\n"
        )
