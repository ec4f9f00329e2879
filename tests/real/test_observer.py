"""The observation that a policy reads of frames and states."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from tests.real.fakes import END_EFFECTOR, HOME, SIZE, FakeCamera, ManualTime, description
from unified_video_action.poses import pose_matrix, relative_to
from unified_video_action.real.control.observer import Observer
from unified_video_action.real.planner import ObservationEntry
from unified_video_action.real.robots.interface import ArmState

STEP = 0.1  # seconds


def pose_at(time: float) -> np.ndarray:
    """Somewhere on a way without symmetry."""
    return pose_matrix(
        HOME[:3, 3] + [0.1 * np.sin(time), 0.05 * time, 0.02], Rotation.from_rotvec([time, 0.2, -time / 2]).as_matrix()
    )


def state(time: float) -> ArmState:
    return ArmState(time, pose_at(time), 0.01 * time, np.zeros(6), np.zeros(6))


def watched(seconds: float, rates: tuple[float, ...] = (30.0,), **changes) -> tuple[Observer, ManualTime]:
    clock = ManualTime(10.0)
    observer = Observer(description(**changes), [FakeCamera(clock, rate) for rate in rates], STEP, clock)
    while clock() < 10.0 + seconds:
        clock.sleep(0.004)
        observer.add_state(state(clock()))
        for camera in range(len(rates)):
            observer.look(camera)
    return observer, clock


def numbers(entries: dict) -> np.ndarray:
    return entries["wrist"][:, 0, 0, 0].astype(int)


def test_frames_are_those_nearest_to_the_history_and_states_lie_at_the_same_times() -> None:
    observer, clock = watched(3.0)
    observed = observer.observation()
    newest = int((clock() - FakeCamera.latency) * 30)
    assert observed.time == newest / 30
    # A history of stride 4 at 0.1 s a step: 0.4 s apart, that is 12 frames.
    assert (numbers(observed.entries) == (newest - np.array([36, 24, 12, 0])) % 256).all()
    times = observed.time - np.array([1.2, 0.8, 0.4, 0.0])
    # Measured states lie 4 ms apart, and are interpolated.
    known = 10 + 0.004 * np.arange(1, 751)
    slerp = Slerp(known, Rotation.from_matrix(np.stack([pose_at(time)[:3, :3] for time in known])))
    positions = [np.interp(times, known, [pose_at(time)[axis, 3] for time in known]) for axis in range(3)]
    poses = pose_matrix(np.stack(positions, axis=1), slerp(times).as_matrix())
    base = poses[-1]
    np.testing.assert_allclose(observed.base, base, atol=1e-6)
    seen = relative_to(poses, base)
    np.testing.assert_allclose(observed.entries["effector_position"], seen[:, :3, 3], atol=1e-6)
    np.testing.assert_allclose(observed.entries["effector_rotation"], seen[:, :2, :3].reshape(4, 6), atol=1e-6)
    np.testing.assert_allclose(observed.entries["opening"][:, 0], 0.01 * times, atol=1e-6)


def test_before_there_is_enough_history_the_oldest_stands_in() -> None:
    seen = numbers(watched(0.5)[0].observation().entries)
    assert seen[0] == seen[1] < seen[2] < seen[3]
    assert watched(0.0)[0].observation() is None


def test_cameras_that_differ_in_age_meet_at_a_common_time() -> None:
    entries = {name: ObservationEntry("rgb", (SIZE, SIZE, 3), 4) for name in "ab"}
    observer, clock = watched(2.0, (30.0, 10.0), observations=entries)
    observed = observer.observation()
    assert observed.time == pytest.approx(int((clock() - FakeCamera.latency) * 10) / 10)
    assert observed.entries["a"][-1, 0, 0, 0] == round(observed.time * 30) % 256


def test_more_states_than_frames_are_consecutive_steps() -> None:
    entries = dict(description().observations) | {"opening": ObservationEntry("low_dim", (1,), 16)}
    observer, _ = watched(3.0, observations=entries)
    assert len(observer._states) < 2.6 / 0.004 and len(observer._frames[0]) < 2.6 * 30, "old ones are forgotten"
    observed = observer.observation()
    expected = 0.01 * (observed.time - STEP * np.arange(15, -1, -1))
    np.testing.assert_allclose(observed.entries["opening"][:, 0], expected, atol=1e-6)


def test_a_policy_that_this_robot_cannot_serve_is_refused() -> None:
    camera = FakeCamera(ManualTime())
    with pytest.raises(ValueError, match="setup.cameras: 2 of them, but the policy reads 1: wrist"):
        Observer(description(), [camera, camera], STEP)
    with pytest.raises(ValueError, match="does not say how its actions move an end effector"):
        Observer(description(end_effector=None), [camera], STEP)
    entries = dict(description().observations) | {"force": ObservationEntry("low_dim", (3,), 4)}
    with pytest.raises(ValueError, match="'force'"):
        Observer(description(observations=entries, end_effector=END_EFFECTOR), [camera], STEP)
