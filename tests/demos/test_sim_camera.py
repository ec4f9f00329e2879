"""The simulated cameras show the table, deliver frames late, and can fail."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("unified_video_action.demos.sim_arm.engine", reason="needs `make sims`", exc_type=ImportError)

from unified_video_action.demos.sim_arm.camera import SimCamera
from unified_video_action.demos.sim_arm.clock import ManualClock
from unified_video_action.demos.sim_arm.setup import SimSetup

from unified_video_action.demos.sim_arm.world import World
from unified_video_action.real.robots.interface import ArmCommand, RobotError, Setup

SIZE, RATE, LATENCY = 96, 30.0, 0.08


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = SimSetup(("wrist", "side"), (SIZE, SIZE), RATE, LATENCY, clock=ManualClock())
    with made.arm, made.cameras[0], made.cameras[1]:
        yield made


def share_of(image: np.ndarray, colour: str) -> float:
    """Share of the pixels that are clearly of a colour."""
    red, green, blue = (image[..., channel].astype(int) for channel in range(3))
    what = {
        "red": (red > 90) & (red > 2 * green + 20) & (red > 2 * blue + 20),
        "orange": (red > 90) & (green > 0.3 * red) & (green < 0.65 * red) & (blue < 0.3 * red),
        "white": (red > 200) & (green > 200) & (blue > 180),
    }[colour]
    return float(what.mean())


def test_they_see_the_cup_and_the_fingers(setup: Setup) -> None:
    setup.arm.world.clock.sleep(0.3)
    wrist, side = (camera.latest().image for camera in setup.cameras)
    for image in (wrist, side):
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert share_of(image, "red") > 0.001, "no cup"
    assert share_of(wrist[SIZE // 2 :], "orange") > 0.01, "no fingers in the lower half"
    assert share_of(wrist[: SIZE // 3], "orange") == 0


def test_the_wrist_camera_moves_with_the_hand_as_umis_does(setup: Setup) -> None:
    arm, clock = setup.arm, setup.arm.world.clock
    clock.sleep(0.3)
    before = setup.cameras[0].latest().image
    state = arm.state()
    near = state.pose.copy()
    near[:3, 3] = [*arm.world.table.cup, 0.12]  # before the fingers now
    arm.command(ArmCommand(clock.time() + 1, near, state.gripper))
    clock.sleep(1.5)
    assert _middle_of_the_cup(before) < 0.4 * SIZE  # the cup was to the left of the hand
    assert abs(_middle_of_the_cup(setup.cameras[0].latest().image) - SIZE / 2) < SIZE / 12


def _middle_of_the_cup(image: np.ndarray) -> float:
    """Its column."""
    return float(np.argwhere((image[..., 0] > 90) & (image[..., 0] > 2 * image[..., 1].astype(int) + 20))[:, 1].mean())


def test_frames_come_late_and_at_their_rate(setup: Setup) -> None:
    clock, camera = setup.arm.world.clock, setup.cameras[1]
    assert camera.latest() is None
    times = []
    for _ in range(200):
        clock.sleep(0.005)
        frame = camera.latest()
        if frame is not None and (not times or frame.time != times[-1]):
            times.append(frame.time)
            assert LATENCY <= clock.time() - frame.time < LATENCY + 0.01
    assert 26 <= len(times) <= 28  # in one second, less the latency
    assert np.diff(times) == pytest.approx(1 / RATE, abs=0.0021)


def test_a_frame_shows_the_moment_of_its_time(setup: Setup) -> None:
    arm, clock, camera = setup.arm, setup.arm.world.clock, setup.cameras[1]
    clock.sleep(0.5)
    still = camera.latest().image
    goal = arm.state().pose.copy()
    goal[1, 3] -= 0.15
    began = clock.time()
    arm.command(ArmCommand(began + 0.3, goal, 0.086))
    moved = None
    while moved is None:
        clock.sleep(0.005)
        frame = camera.latest()
        if np.abs(frame.image.astype(int) - still).max() > 60:
            moved = frame
    assert began < moved.time < began + 0.15 and clock.time() - moved.time >= LATENCY


def test_faults(setup: Setup) -> None:
    arm, clock, camera = setup.arm, setup.arm.world.clock, setup.cameras[0]
    clock.sleep(1)
    good = camera.latest()
    arm.faults.dead_camera = True
    clock.sleep(1)
    assert camera.latest() is good
    arm.faults.dead_camera, arm.faults.stuck_camera = False, True
    arm.command(ArmCommand(clock.time() + 0.5, arm.world.at(clock.time()).pose @ _turned(), 0.086))
    clock.sleep(1)
    stuck = camera.latest()
    assert stuck.time > good.time + 1 and (stuck.image == good.image).all()
    arm.faults.stuck_camera = False
    clock.sleep(0.2)
    assert (camera.latest().image != good.image).any()
    arm.faults.camera_delay = 0.5
    clock.sleep(1)
    assert 0.58 <= clock.time() - camera.latest().time < 0.63
    arm.faults.camera_delay, arm.faults.dropped_frames = 0.0, 0.5
    times = set()
    for _ in range(400):
        clock.sleep(0.005)
        times.add(camera.latest().time)
    assert 20 < len(times) < 40  # of sixty


def _turned() -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = [[0.995, -0.0998, 0], [0.0998, 0.995, 0], [0, 0, 1]]
    return turn


def test_mistakes_are_named() -> None:
    world = World(ManualClock())
    with pytest.raises(ValueError, match="cameras are .*wrist"):
        SimCamera(world, "ceiling")
    with pytest.raises(ValueError, match="rate=0"):
        SimCamera(world, rate=0)
    with pytest.raises(RobotError, match="not connected"):
        SimCamera(world).latest()


def test_with_a_real_clock_frames_come_by_themselves() -> None:
    setup = SimSetup(("wrist",), (64, 64))
    with setup.arm, setup.cameras[0] as camera:
        times = set()
        for _ in range(400):
            frame = camera.latest()
            if frame is not None:
                times.add(frame.time)
                assert frame.time <= time.monotonic() - 0.079
            if len(times) > 3:
                break
            time.sleep(0.025)
        assert len(times) > 3 and frame.image.shape == (64, 64, 3) and frame.image.std() > 10
    assert not setup.arm.world.running
