"""Poses between poses, and how a motion comes to rest."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from unified_video_action.poses import pose_matrix
from unified_video_action.real.motion import Braking, Motion
from unified_video_action.real.trajectory import Trajectory, between, turn_of, turned

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.3, 3.0, np.pi - 1e-9, np.pi])
def test_turns_are_scipys(angle: float) -> None:
    for axis in RNG.normal(size=(20, 3)):
        vector = axis / np.linalg.norm(axis) * angle
        matrix = turned(vector)
        np.testing.assert_allclose(matrix, Rotation.from_rotvec(vector).as_matrix(), atol=1e-12)
        back = turn_of(matrix)
        assert abs(np.linalg.norm(back) - angle) < 1e-9
        np.testing.assert_allclose(turned(back), matrix, atol=1e-9)


def random_trajectory(n: int = 6) -> Trajectory:
    times = 10 + np.cumsum(RNG.uniform(0.05, 0.2, n))
    turns = Rotation.from_rotvec(RNG.normal(0, 0.8, (n, 3))).as_matrix()
    return Trajectory(times, pose_matrix(RNG.normal(size=(n, 3)), turns), RNG.uniform(0, 0.08, n))


def test_a_trajectory_is_interpolated_as_scipy_does_and_holds_at_its_ends() -> None:
    trajectory = random_trajectory()
    times = np.linspace(trajectory.times[0], trajectory.end, 57)
    slerp = Slerp(trajectory.times, Rotation.from_matrix(trajectory.poses[:, :3, :3]))
    sampled = trajectory.sampled(times)
    np.testing.assert_allclose(sampled.poses[:, :3, :3], slerp(times).as_matrix(), atol=1e-9)
    for axis in range(3):
        expected = np.interp(times, trajectory.times, trajectory.poses[:, axis, 3])
        np.testing.assert_allclose(sampled.poses[:, axis, 3], expected, atol=1e-12)
    np.testing.assert_allclose(sampled.grippers, np.interp(times, trajectory.times, trajectory.grippers), atol=1e-12)
    for time, index in ((0.0, 0), (99.0, -1)):
        assert (trajectory.at(time)[0] == trajectory.poses[index]).all()


def test_one_trajectory_follows_another_without_a_jump() -> None:
    one, other = random_trajectory(9), random_trajectory(9)
    since = float(one.times[2] + 0.01)
    joined = one.followed_by(other, since, fade=0.1, remember=0.15)
    assert since - 0.15 < joined.times[0] < since
    for before in (joined.times[0], since - 0.02, since):
        np.testing.assert_allclose(joined.at(before)[0], one.at(before)[0], atol=1e-9)
    for after in (since + 0.1, since + 0.2, other.end + 1):
        np.testing.assert_allclose(joined.at(after)[0], other.at(after)[0], atol=1e-9)
    fine = np.linspace(since - 0.1, since + 0.3, 4001)

    def fastest(trajectory: Trajectory) -> float:
        return np.linalg.norm(np.diff(trajectory.sampled(fine).poses[:, :3, 3], axis=0), axis=1).max()

    apart = np.linalg.norm(one.at(since)[0][:3, 3] - other.at(since)[0][:3, 3])
    assert fastest(joined) < 3 * (max(fastest(one), fastest(other)) + apart * 1e-4 / 0.1)


def test_times_must_rise() -> None:
    with pytest.raises(ValueError, match="do not rise"):
        Trajectory(np.array([1.0, 1.0]), np.stack([np.eye(4)] * 2), np.zeros(2))


@pytest.mark.parametrize("speed", [0.0, 0.003, 0.01, 0.1234, 0.5])
def test_braking_ends_where_it_is_foreseen_to(speed: float) -> None:
    period, braking = 0.005, Braking(2.0, 6.0)
    velocity, spin = np.array([0.6, 0.0, -0.8]) * speed, np.array([0.0, 1.0, 0.0]) * speed * 3
    motion = Motion(np.zeros(3), np.eye(3), velocity, spin, braking)
    walked, ticks = motion, 0
    while not walked.at_rest:
        slower = walked.slower(period)
        assert np.linalg.norm(slower[0] - walked.velocity) <= 2.0 * period * (1 + 1e-9)
        assert np.linalg.norm(slower[1] - walked.spin) <= 6.0 * period * (1 + 1e-9)
        walked = walked.moved(*slower, period, braking)
        ticks += 1
        np.testing.assert_allclose(walked.pose, motion.braked(ticks, period), atol=1e-12)
    assert ticks <= motion.ticks_to_rest(period)
    np.testing.assert_allclose(walked.position, motion.resting_place(period), atol=1e-12)


def test_between_goes_the_short_way_round() -> None:
    one, other = pose_matrix(np.zeros(3), turned([0, 0, 3.0])), pose_matrix(np.ones(3), turned([0, 0, -3.0]))
    middle = between(one, other, 0.5)
    np.testing.assert_allclose(middle[:3, 3], 0.5)
    np.testing.assert_allclose(middle[:3, :3], turned([0, 0, np.pi]), atol=1e-9)
