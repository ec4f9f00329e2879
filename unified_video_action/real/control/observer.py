"""The newest frames and states, and the observation that a policy reads."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unified_video_action.dataset.frame_fit import Fit
from unified_video_action.real.control.trajectory import Trajectory
from unified_video_action.real.planner import PolicyDescription
from unified_video_action.real.robots.interface import ArmState, Camera, Frame, RobotError

log = logging.getLogger(__name__)

POLL = 0.005  # seconds between two looks for a new frame
MARGIN = 1.0  # seconds that are kept beyond a history


@dataclass(frozen=True)
class Observed:
    """An observation, and what is needed to understand the policy's answer."""

    time: float  # at which the newest frame was taken
    base: np.ndarray  # (4, 4) pose of the end effector then
    entries: dict[str, np.ndarray]  # name -> (steps, *shape)


class Observer:
    """Keeps frames and states, each with the time at which it was true.

    Cameras are looked at by a thread each; the states come from the thread that reads the arm.

    Args:
        step: seconds between two steps of the history.
        on_frame: called with a camera's number and its frame, from that camera's thread, for every new frame.

    Raises:
        ValueError: the policy does not move an end effector, or there are not as many cameras as it reads.
    """

    def __init__(
        self, policy: PolicyDescription, cameras: Sequence[Camera], step: float,
        now: Callable[[], float] = time.monotonic, on_frame: Callable[[int, Frame], None] = lambda camera, frame: None,
    ) -> None:  # fmt: skip
        self._policy, self._cameras, self._step, self._now, self._on_frame = policy, cameras, step, now, on_frame
        self._end_effector, entries = policy.require_end_effector(), policy.observations
        views = [name for name, entry in entries.items() if entry.kind == "rgb"]
        if len(views) != len(cameras):
            raise ValueError(
                f"setup.cameras: {len(cameras)} of them, but the policy reads {len(views)}: {', '.join(views)}"
            )
        if unknown := set(entries) - set(views) - set(self._end_effector.states):
            raise ValueError(
                f"the policy reads {unknown}, which its description does not make from an end effector's pose"
            )
        self.reach = -min(float(self._offsets(entry.steps).min()) for entry in entries.values())  # seconds of a history
        self._frames: list[deque[Frame]] = [deque() for _ in cameras]
        self._states: deque[ArmState] = deque()
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._start: np.ndarray | None = None  # pose in which the episode began
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for number in range(len(self._cameras)):
            thread = threading.Thread(target=self._watch, args=(number,), name=f"frames {number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()

    def begin(self, state: ArmState) -> None:
        """An episode begins, or goes on, in this state; those before it are forgotten: they may be of a faulty arm."""
        if self._start is None:
            self._start = state.pose.copy()
        with self._lock:
            self._states.clear()
        self.add_state(state)

    def add_state(self, state: ArmState) -> None:
        self._append(self._states, state)

    def look(self, number: int) -> None:
        """Take a camera's newest frame in."""
        frame = self._cameras[number].latest()
        if frame is not None and self._append(self._frames[number], frame):
            self._on_frame(number, frame)

    def newest_frames(self) -> list[float]:
        """When each camera's newest frame was taken; minus infinity where there is none."""
        return [frames[-1].time if frames else -np.inf for frames in self._frames]

    def observation(self) -> Observed | None:
        """What the policy reads now; None before there are frames of all cameras and a state.

        t_now is the time of the newest frame that every camera can match. History frames are those nearest to
        t_now less their offsets; where the history does not reach back so far, its oldest stands in. States are
        interpolated to the same times.
        """
        with self._lock:
            frames, states = [list(each) for each in self._frames], list(self._states)
        if not states or not all(frames):
            return None
        now = min(each[-1].time for each in frames)
        times, poses, grippers = zip(*((state.time, state.pose, state.gripper) for state in states))
        known = Trajectory(np.array(times), np.stack(poses), np.array(grippers))
        base, _ = known.at(now)
        start = poses[0] if self._start is None else self._start
        entries, cameras = {}, iter(frames)
        for name, entry in self._policy.observations.items():
            wanted = now + self._offsets(entry.steps)
            if entry.kind == "rgb":
                entries[name] = _frames_at(next(cameras), wanted, entry.shape)
            else:
                history = known.sampled(wanted)
                entries[name] = self._end_effector.observe(history.poses, history.grippers, base, start)[name]
        return Observed(now, base, entries)

    def _append(self, kept: deque, item: ArmState | Frame) -> bool:
        """False: not newer than the newest."""
        with self._lock:
            if kept and item.time <= kept[-1].time:
                return False
            kept.append(item)
            while kept[0].time < item.time - self.reach - MARGIN:
                kept.popleft()
        return True

    def _offsets(self, steps: int) -> np.ndarray:
        """Seconds (steps,) from now: the history's, or as many consecutive steps as are read."""
        horizon = self._policy.horizon
        offsets = horizon.history_offsets if steps == horizon.history else range(1 - steps, 1)
        return self._step * np.array(offsets, float)

    def _watch(self, number: int) -> None:
        failing = False
        while not self._closing.wait(POLL):
            try:
                self.look(number)
                failing = False
            except (RobotError, OSError) as error:  # its frames grow old, which the loop sees
                if not failing:
                    log.error("camera %d: %s", number, error)
                failing = True


def _frames_at(frames: list[Frame], times: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The frames nearest to times (n,): uint8 (n, H, W, 3)."""
    known = np.array([frame.time for frame in frames])
    nearest = np.abs(known[None] - times[:, None]).argmin(1)
    fit = Fit(tuple(shape[:2]))
    return np.stack([fit(frames[index].image) for index in nearest])
