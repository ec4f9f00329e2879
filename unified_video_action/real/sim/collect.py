"""Demonstrations of the scripted expert on the simulated arm, recorded as a real arm's episodes are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unified_video_action.poses import pose_matrix
from unified_video_action.real.recorder import EpisodeRecorder
from unified_video_action.real.recording_archive import ENDING
from unified_video_action.real.robot import Arm, ArmCommand, Setup
from unified_video_action.real.sim.clock import ManualClock
from unified_video_action.real.sim.expert import Course, Waypoint, cup_onto_saucer, random_table, stands_on_saucer
from unified_video_action.real.sim.scene import GRIPPER
from unified_video_action.real.sim.setup import SimSetup

TICK = 0.01  # seconds between two commands
SETTLING = 0.8  # seconds in which the hand goes to where its episode begins
INSTRUCTION = "put the cup on the saucer"


@dataclass(frozen=True)
class Attempt:
    """One episode of the expert; `path` is None where it failed, or where nothing was to be recorded."""

    seed: int
    success: bool
    seconds: float
    lag: float  # metres between where the hand was told to be and where it was, on average
    path: Path | None = None


@dataclass(frozen=True)
class Collector:
    """Plays the episode of a seed; everything in it follows from the seed.

    Args:
        folder: where successful episodes go, as NNNNN.zarr.zip by seed; None: nothing is recorded, nor drawn.
        cameras: views of the scene.
        size: of frames, pixels.
        rate: frames and rows per second.
        drift: metres by which the hand wanders off its course, slowly.
        codec: of frames, "jpeg" or "jpegxl".
    """

    folder: Path | None
    cameras: tuple[str, ...] = ("wrist",)
    size: int = 224
    rate: float = 20.0
    drift: float = 0.003
    codec: str = "jpeg"

    def __call__(self, seed: int) -> Attempt:
        rng = np.random.default_rng(seed)
        table = random_table(rng)
        views = self.cameras if self.folder is not None else ()
        setup = SimSetup(views, (self.size,) * 2, self.rate, 0.0, table.cup, table.saucer, clock=ManualClock())
        recorded = None if self.folder is None else self.folder / f".{seed:05d}.attempt{ENDING}"
        with setup.arm:
            for camera in setup.cameras:
                camera.connect()
            try:
                start = _beginning(setup.arm, rng)
                course = cup_onto_saucer(table, start, rng)
                if recorded is None:
                    lag = self._play(setup, course, rng, None)
                else:
                    about = {"instruction": INSTRUCTION, "robot": "sim", "seed": seed, "cup": table.cup}
                    about |= {"saucer": table.saucer, "source": "scripted expert"}
                    with EpisodeRecorder(
                        recorded, len(views), self.rate, self.codec, attributes=about, patient=True
                    ) as recorder:
                        lag = self._play(setup, course, rng, recorder)
                success = stands_on_saucer(table, setup.arm.world.at(setup.arm.world.clock.time()))
            finally:
                for camera in setup.cameras:
                    camera.close()
        if recorded is None:
            return Attempt(seed, success, course.seconds, lag)
        if not success:
            recorded.unlink()
            return Attempt(seed, success, course.seconds, lag)
        return Attempt(seed, success, course.seconds, lag, recorded.rename(self.folder / f"{seed:05d}{ENDING}"))

    def _play(self, setup: Setup, course: Course, rng: np.random.Generator, recorder: EpisodeRecorder | None) -> float:
        """Follow a course to its end; the mean lag, metres."""
        arm, clock = setup.arm, setup.arm.world.clock
        began, lags, drift = clock.time(), [], np.zeros(3)
        while clock.time() - began < course.seconds:
            now = clock.time()
            drift = 0.98 * drift + np.sqrt(1 - 0.98**2) * rng.normal(0, self.drift, 3) * [1, 1, 0.3]
            pose, opening = course.at(now + TICK - began)
            command = ArmCommand(now + TICK, pose_matrix(pose[:3, 3] + drift, pose[:3, :3]), opening)
            arm.command(command)
            state = arm.state()
            lags.append(np.linalg.norm(state.pose[:3, 3] - pose[:3, 3]))
            if recorder is not None:
                recorder.state(state)
                recorder.command(command, now)
                for number, camera in enumerate(setup.cameras):
                    frame = camera.latest()
                    if frame is not None:
                        recorder.frame(number, frame)
            clock.sleep(TICK)
        return float(np.mean(lags))


def _beginning(arm: Arm, rng: np.random.Generator) -> np.ndarray:
    """Bring the hand to a pose near where it is, and return that (4, 4)."""
    clock, here = arm.world.clock, arm.state().pose
    pose = pose_matrix(here[:3, 3] + rng.uniform([-0.05, -0.06, -0.03], [0.02, 0.06, 0.04]), here[:3, :3])
    course = Course((Waypoint(here, GRIPPER, 0.0), Waypoint(pose, GRIPPER, SETTLING / 2)))
    began = clock.time()
    while clock.time() - began < SETTLING:
        arm.command(ArmCommand(clock.time() + TICK, course.at(clock.time() + TICK - began)[0], GRIPPER))
        clock.sleep(TICK)
    return pose
