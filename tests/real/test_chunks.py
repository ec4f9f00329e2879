"""Plans become poses in time, and give way to one another."""

from collections import Counter

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from tests.real.fakes import END_EFFECTOR, HOME, circle, description
from unified_video_action.poses import EndEffectorSpec, pose_matrix
from unified_video_action.real.control.chunks import BadPlan, Chunks, keeping, read_chunk
from unified_video_action.real.control.trajectory import Trajectory, between, ensemble, turn_of, turned
from unified_video_action.real.planner import moving_average
from unified_video_action.spec import Horizon

STEP = 0.1
RNG = np.random.default_rng(5)
BASE = pose_matrix(np.array([0.3, 0.1, 0.2]), turned([0.3, 1.0, -0.5]))


def said(
    observed: float, base: np.ndarray, offset: int = 0, end_effector: EndEffectorSpec = END_EFFECTOR
) -> np.ndarray:
    """The actions (16, 10) of a policy that goes round the circle."""
    times = observed + STEP * (offset + np.arange(16))
    return end_effector.actions(np.stack([circle(time) for time in times]), np.linspace(0, 0.08, 16), base)


@pytest.mark.parametrize("offset, relative", [(0, True), (1, True), (0, False)])
def test_actions_are_meant_for_the_time_of_the_newest_frame(offset: int, relative: bool) -> None:
    end_effector = EndEffectorSpec({"effector_position": "position"}, relative_actions=relative)
    policy = description(horizon=Horizon(action_offset=offset), end_effector=end_effector)
    plan = read_chunk(said(50.0, BASE, offset, end_effector), policy, STEP, 50.0, BASE)
    np.testing.assert_allclose(plan.times, 50.0 + STEP * (offset + np.arange(16)))
    np.testing.assert_allclose(plan.poses, np.stack([circle(time) for time in plan.times]), atol=1e-6)
    np.testing.assert_allclose(plan.grippers, np.linspace(0, 0.08, 16), atol=1e-6)


def test_a_plan_that_cannot_be_followed_says_why() -> None:
    for at, number, match in (((7, 2), np.nan, "1 of the plan"), ((7, slice(3, 6)), 0.0, "first row is zero")):
        actions = said(0.0, HOME)
        actions[at] = number
        with pytest.raises(BadPlan, match=match):
            read_chunk(actions, description(), STEP, 0.0, HOME)
    with pytest.raises(BadPlan, match=r"shape \(5, 10\)"):
        read_chunk(said(0.0, HOME)[:5], description(), STEP, 0.0, HOME)


def chunks(blend: str = "latest") -> tuple[Chunks, Counter]:
    counts: Counter[str] = Counter()
    return Chunks(description(), STEP, blend, 0.02, counts), counts


def plan_at(observed: float, shift: float = 0.0) -> Trajectory:
    times = observed + STEP * np.arange(16)
    poses = np.stack([circle(time) for time in times])
    poses[:, 0, 3] += shift
    return Trajectory(times, poses, np.full(16, 0.04))


def test_stale_actions_are_dropped_and_a_wholly_stale_plan_too() -> None:
    made, counts = chunks()
    assert made.trajectory is None and made.add(plan_at(100.0), 100.25, HOME, 0.05)
    assert counts["stale_actions"] == 3  # of 100.0, 100.1 and 100.2
    wanted = {100.27: HOME, 100.4: circle(100.4), 101.0: circle(101.0), 105.0: circle(101.5)}
    for time, pose in wanted.items():  # it sets out from the newest command, and stays at the end
        np.testing.assert_allclose(made.trajectory.at(time)[0], pose, atol=1e-9)
    before = made.trajectory
    assert not made.add(plan_at(98.0), 100.4, HOME, 0.05)
    assert counts["stale_plans"] == 1 and made.trajectory is before


def test_the_latest_plan_takes_over_without_a_jump() -> None:
    made, counts = chunks("latest")
    made.add(plan_at(100.0), 100.05, HOME, 0.04)
    before = made.trajectory.at(100.57)
    made.add(plan_at(100.5, shift=0.03), 100.55, HOME, 0.04)
    np.testing.assert_allclose(made.trajectory.at(100.57)[0], before[0], atol=1e-12)
    for time, share in ((100.6, 0.3), (100.7, 1.0)):
        np.testing.assert_allclose(made.trajectory.at(time)[0][0, 3], circle(time)[0, 3] + 0.03 * share, atol=1e-9)
    assert counts["blends"] == 1


def test_an_ensemble_is_the_weighted_mean_of_all_plans_for_a_time() -> None:
    made, _ = chunks("ensemble")
    shifts = np.array([0.0, 0.02, -0.01])
    for index, shift in enumerate(shifts):
        made.add(plan_at(100.0 + 0.4 * index, shift), 100.05 + 0.4 * index, HOME, 0.04)
    for time, first in ((101.2, 0), (101.8, 1), (102.2, 2)):  # all three plans, then two, then one
        mean = np.average(shifts[first:], weights=np.exp(-0.01 * np.arange(3 - first)))
        np.testing.assert_allclose(made.trajectory.at(time)[0][0, 3], circle(time)[0, 3] + mean, atol=1e-9)
    times, turns = np.array([1.0, 2.0]), [[0, 0, 0.9 * np.pi], [0, 0, -0.9 * np.pi]]  # whose mean is pi, not 0
    given = [Trajectory(times, np.stack([pose_matrix(np.zeros(3), turned(turn))] * 2), np.zeros(2)) for turn in turns]
    mean = ensemble(given).poses[0, :3, :3]
    assert Rotation.from_matrix(mean @ turned([0, 0, np.pi]).T).magnitude() < 0.01


def test_going_on_gives_the_rest_of_the_plan_as_seen_from_now() -> None:
    made, _ = chunks("continue")
    assert made.continuation(100.0, HOME, 100.1) is None
    made.add(plan_at(100.0), 100.05, HOME, 0.04)
    kept = made.continuation(100.5, BASE, arrival=100.75)
    assert len(kept.actions) == 11  # 100.5 to 101.5
    poses, _ = END_EFFECTOR.targets(kept.actions, BASE)
    np.testing.assert_allclose(poses, np.stack([circle(100.5 + STEP * i) for i in range(11)]), atol=1e-6)
    # Executed before the new plan is there: 100.5, 100.6 and 100.7, for it comes at 100.75 + 0.02.
    assert (kept.weights[:3] == 1).all() and (np.diff(kept.weights[2:]) < 0).all() and 0 < kept.weights[-1] < 0.1
    assert made.continuation(105.0, BASE, 105.1) is None
    made.clear()
    assert made.continuation(100.5, BASE, 100.75) is None
    shares = np.array([1.0, 0.75, 0.5, 0.25])  # weights fall as in the paper
    weights = keeping(np.array([0.0, 1.0, 2.0, 3.0]), arrival=0.5)
    np.testing.assert_allclose(weights, shares * (np.exp(shares) - 1) / (np.e - 1))


def test_an_unknown_blend_or_one_that_the_policy_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="blend='mix'"):
        chunks("mix")
    with pytest.raises(ValueError, match="cannot go on"):
        Chunks(description(continues=False), STEP, "continue", 0.02, Counter())


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.3, 3.0, np.pi - 1e-9, np.pi])
def test_turns_are_scipys(angle: float) -> None:
    for axis in RNG.normal(size=(20, 3)):
        vector = axis / np.linalg.norm(axis) * angle
        matrix = turned(vector)
        np.testing.assert_allclose(matrix, Rotation.from_rotvec(vector).as_matrix(), atol=1e-12)
        assert abs(np.linalg.norm(turn_of(matrix)) - angle) < 1e-9
        np.testing.assert_allclose(turned(turn_of(matrix)), matrix, atol=1e-9)


def test_a_trajectory_is_interpolated_as_scipy_does_and_holds_at_its_ends() -> None:
    known = 10 + np.cumsum(RNG.uniform(0.05, 0.2, 6))
    turns = Rotation.from_rotvec(RNG.normal(0, 0.8, (6, 3)))
    trajectory = Trajectory(known, pose_matrix(RNG.normal(size=(6, 3)), turns.as_matrix()), RNG.uniform(0, 0.08, 6))
    times = np.linspace(known[0], known[-1], 57)
    positions = [np.interp(times, known, trajectory.poses[:, axis, 3]) for axis in range(3)]
    sampled = trajectory.sampled(times)
    expected = pose_matrix(np.stack(positions, 1), Slerp(known, turns)(times).as_matrix())
    np.testing.assert_allclose(sampled.poses, expected, atol=1e-9)
    np.testing.assert_allclose(sampled.grippers, np.interp(times, known, trajectory.grippers), atol=1e-12)
    for time, index in ((0.0, 0), (99.0, -1)):
        assert (trajectory.at(time)[0] == trajectory.poses[index]).all()
    middle = between(pose_matrix(np.zeros(3), turned([0, 0, 3.0])), pose_matrix(np.ones(3), turned([0, 0, -3.0])), 0.5)
    np.testing.assert_allclose(middle[:3, :3], turned([0, 0, np.pi]), atol=1e-9)  # the short way round


def test_smoothing_is_the_mean_of_neighbours_with_the_ends_repeated() -> None:
    actions = RNG.normal(size=(16, 10)).astype(np.float32)
    padded = np.concatenate([actions[:1], actions, actions[-1:]])
    smooth = moving_average(actions, 3)
    np.testing.assert_allclose(smooth, (padded[:-2] + padded[1:-1] + padded[2:]) / 3, atol=1e-6)
    assert (moving_average(actions, 1) == actions).all() and smooth.dtype == np.float32
    with pytest.raises(ValueError, match="smooth=2"):
        moving_average(actions, 2)
