"""A scripted expert for the simulated arm, which puts the cup onto the saucer, and the recording of its episodes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from unified_video_action.demos.collecting import Attempt, option
from unified_video_action.demos.collecting import Collector as BaseCollector
from unified_video_action.demos.sim_arm.robot import SimSetup
from unified_video_action.demos.sim_arm.world import GRIPPER, VIEWS, ManualClock, Snapshot, Table
from unified_video_action.files import written
from unified_video_action.poses import pose_matrix
from unified_video_action.real.control.trajectory import Trajectory
from unified_video_action.real.robots.archive import CODECS, ENDING
from unified_video_action.real.robots.interface import ArmCommand
from unified_video_action.real.robots.recorder import EpisodeRecorder

FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # the end effector's rotation when its fingers point along x
CUP_HEIGHT, SAUCER_HEIGHT = 0.075, 0.008  # metres
GRIP = 0.050  # metres, less than the cup's width
NEAR, UPRIGHT = 0.025, 0.97  # metres from the saucer's middle, and height of the cup's axis, that count as success
OPENED = 0.070  # metres
TICK = 0.01  # seconds between two commands
SETTLING = 0.8  # seconds in which the end effector goes to where its episode begins
INSTRUCTION = "put the cup on the saucer"


@dataclass(frozen=True)
class Course:
    """A way over waypoints, gently speeded up and slowed down between two of them."""

    waypoints: Trajectory  # whose times begin at 0

    @classmethod
    def over(cls, start: np.ndarray, legs: Sequence[tuple[np.ndarray, float, float]]) -> Course:
        """From `start`, with an open gripper, to poses (4, 4) with gripper widths, each with the seconds it takes."""
        poses, grippers, seconds = zip((start, GRIPPER, 0.0), *legs)
        return cls(Trajectory(np.cumsum(seconds), np.stack(poses), np.array(grippers)))

    def at(self, seconds: float) -> tuple[np.ndarray, float]:
        """Pose (4, 4) and gripper width at a time after the beginning."""
        times = self.waypoints.times
        leg = int(np.clip(np.searchsorted(times, seconds, side="right"), 1, len(times) - 1))
        begin, end = times[leg - 1 : leg + 1]
        share = np.clip((seconds - begin) / (end - begin), 0, 1)
        share = share**3 * (10 - 15 * share + 6 * share**2)  # no jerk at either end
        return self.waypoints.at(begin + share * (end - begin))


def random_table(rng: np.random.Generator) -> Table:
    """A cup on the left, a saucer on the right."""
    cup = rng.uniform([0.30, 0.05], [0.42, 0.17])
    saucer = rng.uniform([0.30, -0.17], [0.42, -0.06])
    return Table(tuple(cup.tolist()), tuple(saucer.tolist()))


def cup_onto_saucer(table: Table, start: np.ndarray, rng: np.random.Generator) -> Course:
    """Over the cup, down along the fingers, grip, lift, over the saucer, down, open, back; tempo and heights vary.

    Args:
        start: (4, 4) pose of the end effector.
    """
    pace, tilt = rng.uniform(0.8, 1.25), rng.uniform(1.0, 1.15)
    grip_height = rng.uniform(0.038, 0.048)
    cup, saucer = np.array([*table.cup, grip_height]), np.array([*table.saucer, grip_height + SAUCER_HEIGHT + 0.003])
    back, lift = rng.uniform(0.08, 0.11), np.array([0, 0, rng.uniform(0.07, 0.11)])
    at_cup, at_saucer = (_pose_above(position, tilt) for position in (cup, saucer))
    behind = pose_matrix(np.array([0, 0, -back]), np.eye(3))  # in the end effector's own axes
    over_cup, over_saucer = (pose_matrix(pose[:3, 3] + lift, pose[:3, :3]) for pose in (at_cup, at_saucer))
    legs = [
        (at_cup @ behind, GRIPPER, 1.4),
        (at_cup, GRIPPER, 1.0),
        (at_cup, GRIP, 0.5),
        (over_cup, GRIP, 0.8),
        (over_saucer, GRIP, 1.4),
        (at_saucer, GRIP, 0.9),
        (at_saucer, GRIPPER, 0.5),
        (at_saucer @ behind, GRIPPER, 0.8),
    ]
    rest = (at_saucer @ behind, GRIPPER, 0.4)  # in which the arm catches up
    return Course.over(start, [*((pose, opening, pace * seconds) for pose, opening, seconds in legs), rest])


def _pose_above(position: np.ndarray, tilt: float) -> np.ndarray:
    """The end effector at a position (3,), fingers away from the base and `tilt` radians down from level."""
    yaw = np.arctan2(position[1], position[0])
    return pose_matrix(position, Rotation.from_euler("ZY", [yaw, tilt]).as_matrix() @ FORWARD)


def stands_on_saucer(table: Table, seen: Snapshot) -> bool:
    """The cup stands upright on the saucer, and the gripper has let it go."""
    off = float(np.linalg.norm(seen.cup[:2] - table.saucer))
    axis = Rotation.from_quat(seen.cup[3:7], scalar_first=True).as_matrix()[2, 2]
    height = seen.cup[2] - CUP_HEIGHT / 2 - SAUCER_HEIGHT
    return bool(off < NEAR and axis > UPRIGHT and abs(height) < 0.005 and seen.opening > OPENED)


@dataclass(frozen=True)
class Collector(BaseCollector):
    """The simulated arm's episodes, recorded as a real arm's: the output is a folder of archives in UMI's layout."""

    seed: int = option(0, "of the first episode; its number and those of the others are seeds")
    cameras: tuple[str, ...] = option(("wrist",), "views of the scene: wrist, side")
    size: int = option(224, "of frames, pixels")
    rate: float = option(20.0, "frames and rows per second")
    drift: float = option(0.003, "metres of slow drift of the end effector off its course")
    codec: str = option("jpeg", "of frames, jpeg or jpegxl")

    def __post_init__(self) -> None:
        if not set(self.cameras) <= set(VIEWS) or self.codec not in CODECS:
            raise ValueError(f"cameras={self.cameras}, codec={self.codec!r}: expected {VIEWS} and {tuple(CODECS)}")

    @contextlib.contextmanager
    def writer(self, output: Path, task: str) -> Iterator[Callable[[tuple[str, bytes]], None]]:
        def add(episode: tuple[str, bytes]) -> None:
            name, archive = episode
            with written(output / name) as partial:
                partial.write_bytes(archive)

        if output.exists():
            raise FileExistsError(f"{output} exists already; choose another --output, or remove it first")
        output.mkdir(parents=True)
        yield add

    def measuring(self) -> Collector:
        return replace(self, cameras=())

    def __call__(self, attempt: int) -> Attempt:
        seed = self.seed + attempt
        rng = np.random.default_rng(seed)
        table = random_table(rng)
        setup = SimSetup(self.cameras, (self.size,) * 2, self.rate, 0.0, table.cup, table.saucer, ManualClock())
        world, recorder = setup.arm.world, None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{seed:05d}{ENDING}"
            with ExitStack() as stack:
                for each in (setup.arm, *setup.cameras):
                    stack.enter_context(each)
                here = setup.arm.state().pose
                offset = rng.uniform([-0.05, -0.06, -0.03], [0.02, 0.06, 0.04])
                start = pose_matrix(here[:3, 3] + offset, here[:3, :3])
                self._play(setup, Course.over(here, [(start, GRIPPER, SETTLING / 2)]), SETTLING)
                if self.cameras:
                    about = {"instruction": INSTRUCTION, "robot": "sim", "seed": seed, "cup": table.cup}
                    about |= {"saucer": table.saucer, "source": "scripted expert"}
                    recorder = EpisodeRecorder(path, len(self.cameras), self.rate, self.codec, about, patient=True)
                    stack.enter_context(recorder)
                course = cup_onto_saucer(table, start, rng)
                lag = self._play(setup, course, course.waypoints.end, rng, recorder)
                success = stands_on_saucer(table, world.at(world.clock.time()))
            episode = (path.name, path.read_bytes()) if success and self.cameras else None
        return Attempt(success, {"seconds": course.waypoints.end, "lag_mm": 1000 * lag}, episode)

    def _play(
        self, setup: SimSetup, course: Course, seconds: float, rng: np.random.Generator | None = None,
        recorder: EpisodeRecorder | None = None,
    ) -> float:  # fmt: skip
        """Follow a course so long, with drift where there is an `rng`; the mean lag, metres."""
        arm, clock = setup.arm, setup.arm.world.clock
        began, lags, drift = clock.time(), [], np.zeros(3)
        while clock.time() - began < seconds:
            now = clock.time()
            if rng is not None:
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
                    if (frame := camera.latest()) is not None:
                        recorder.frame(number, frame)
            clock.sleep(TICK)
        return float(np.mean(lags))
