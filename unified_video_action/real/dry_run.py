"""What would be sent to an arm, before anything is: plans from what it sees now, through all of the safety.

The arm stays where it is and gets no command. Each plan is followed to its end by an arm that is thought to be perfect,
and what would have gone out is shown and written down. The operator's yes is kept as a confirmation for this robot's
configuration and this policy; `eval_real.py run` moves an arm only with one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unified_video_action.poses import to_vector
from unified_video_action.real.chunks import BadPlan, Plan, read_plan
from unified_video_action.real.limits import SafetyLimits
from unified_video_action.real.observer import Observed, Observer
from unified_video_action.real.planner import Planner, PolicyDescription
from unified_video_action.real.robot import ArmState, RobotError, Setup
from unified_video_action.real.safety import Safety, SafetyStop
from unified_video_action.real.watchdog import LoopSettings, step_seconds_of

log = logging.getLogger(__name__)

PLANS = 3
LOOK = 0.01  # seconds between two states that are read while waiting
PATIENCE = 10.0  # seconds for the first frames
CONVENIENT = ("episode_seconds", "auto_resume", "release_on_exit")  # of `loop`: they change nothing that is sent
WHOLE = 16 * 1024 * 1024  # bytes up to which a checkpoint's file is hashed whole


@dataclass
class Rehearsal:
    """What one plan would have led to."""

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
            f"{len(way) / rate:.2f} s from {_shown(way[0])} to {_shown(way[-1])} m, between {_shown(way.min(0))} and "
            f"{_shown(way.max(0))}, at most {speed:.3f} m/s, gripper {min(self.grippers) * 1e3:.0f} to "
            f"{max(self.grippers) * 1e3:.0f} mm; ticks clipped: {clips or 'none'}"
            + (f"; WOULD BE STOPPED: {self.stop}" if self.stop else "")
        )


def rehearse(
    setup: Setup,
    planner: Planner,
    limits: SafetyLimits,
    settings: LoopSettings,
    text: str | None = None,
    seed: int = 0,
    plans: int = PLANS,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Rehearsal]:
    """Plan from what is seen now. The arm and its cameras are connected; the arm is only read.

    Raises:
        RobotError: it sees nothing, or its state makes no sense. PlannerError: there is no plan.
        SafetyStop: the arm stands where it must not start.
    """
    step = step_seconds_of(planner.description, settings)
    observer = Observer(planner.description, setup.cameras, step, now)
    observer.start()
    try:
        planner.reset(seed, text)
        found = []
        for _ in range(plans):
            observed, state = _look(observer, setup, settings, now, sleep)
            safety = Safety(limits, setup.arm.limits, setup.arm.rate, setup.arm.joints_for, now=now)
            safety.begin(state)
            actions = planner.plan(observed.entries)
            try:
                plan = read_plan(actions, planner.description, step, observed.time, observed.base, settings.smooth)
            except BadPlan as error:
                found.append(Rehearsal(stop=str(error)))
                continue
            found.append(_followed(plan, safety, setup.arm.rate))
        return found
    finally:
        observer.close()


def write_report(path: Path, rehearsals: list[Rehearsal], rate: float) -> None:
    """What would be sent, as JSON: per plan its poses, position and axis-angle, one for every tick."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plans = [
        {
            "poses": to_vector(np.stack(each.poses)).round(6).tolist() if each.poses else [],
            "grippers": [round(opening, 6) for opening in each.grippers],
            "clipped": dict(each.clipped),
            "stop": each.stop,
        }
        for each in rehearsals
    ]
    path.write_text(json.dumps({"rate": rate, "plans": plans}) + "\n")


def digest(robot: Mapping[str, Any], description: PolicyDescription, checkpoint: Path | None) -> str:
    """Names a robot's configuration and a policy; another of either has another name.

    A checkpoint counts with its files; a server with what it says of its policy.
    """
    loop = {key: value for key, value in robot.get("loop", {}).items() if key not in CONVENIENT}
    said = {"robot": {**robot, "loop": loop}, "policy": description.to_json(), "files": _files(checkpoint)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]


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


def _look(
    observer: Observer, setup: Setup, settings: LoopSettings, now: Callable[[], float], sleep: Callable[[float], None]
) -> tuple[Observed, ArmState]:
    """What is seen once a whole history is there."""
    began, before = now(), None
    while True:
        state = setup.arm.state()
        if fault := settings.plausibility.fault(before, state, setup.arm.limits):
            raise RobotError(str(fault))
        before = state
        observer.add_state(state)
        if now() - began > observer.reach:
            observed = observer.observation()
            if observed is not None:
                return observed, state
            if now() - began > observer.reach + PATIENCE:
                raise RobotError(f"no frames of all cameras within {PATIENCE:g} s")
        sleep(LOOK)


def _followed(plan: Plan, safety: Safety, rate: float) -> Rehearsal:
    """By a perfect arm, from its first action to its last, and on to rest."""
    rehearsal, trajectory = Rehearsal(clipped=safety.clipped), plan.trajectory
    reached, _ = safety.told
    ticks = int((trajectory.end - trajectory.times[0]) * rate) + 1
    try:
        for tick in range(ticks):
            reached, gripper = safety.follow(*trajectory.at(trajectory.times[0] + tick / rate), reached)
            rehearsal.poses.append(reached)
            rehearsal.grippers.append(gripper)
    except SafetyStop as stop:
        rehearsal.stop = str(stop)
    return rehearsal


def _files(checkpoint: Path | None) -> list[list[Any]]:
    """Name, size and hash of a checkpoint's files; of large ones the beginning is hashed, and the time of writing."""
    if checkpoint is None:
        return []
    found = []
    for path in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        size = path.stat().st_size
        with path.open("rb") as file:
            beginning = hashlib.sha256(file.read(WHOLE)).hexdigest()
        found.append([path.name, size, beginning, path.stat().st_mtime_ns if size > WHOLE else 0])
    return found


def _shown(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"
