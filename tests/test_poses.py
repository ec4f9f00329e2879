"""Poses and rotations against ones worked out by hand, and against scipy's."""

import numpy as np
import pytest

from unified_video_action.poses import EndEffectorSpec, between, distance, from_vector, inverse, relative_to, to_vector
from unified_video_action.rotations import matrix_from_6d

QUARTER = np.pi / 2
NOW = from_vector(np.array([1.0, 2.0, 0.5, 0, 0, QUARTER]))  # at (1, 2, 0.5), its x axis along the base's y
AHEAD = from_vector(np.array([1.0, 2.3, 0.5, 0, 0, QUARTER]))  # 0.3 m along its own x axis
STATES = {"where": "position", "turned": "rotation_6d", "open": "gripper", "since": "rotation_6d_from_start"}


def test_six_numbers_and_back():
    np.testing.assert_allclose(NOW[:3, :3], [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(to_vector(NOW), [1, 2, 0.5, 0, 0, QUARTER], atol=1e-12)
    many = from_vector(np.random.default_rng(0).normal(size=(2, 5, 6)))
    np.testing.assert_allclose(from_vector(to_vector(many)), many, atol=1e-12)


def test_relative_poses():
    np.testing.assert_allclose(NOW @ inverse(NOW), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(to_vector(relative_to(AHEAD[None], NOW)), [[0.3, 0, 0, 0, 0, 0]], atol=1e-12)
    start = from_vector(np.array([1.0, 2.0, 0.9, 0, 0, 0]))
    metres, radians = distance(NOW, start)
    assert metres == pytest.approx(0.4) and radians == pytest.approx(QUARTER)
    halfway = to_vector(between(start, NOW, np.array(0.5)))
    np.testing.assert_allclose(halfway, [1, 2, 0.7, 0, 0, QUARTER / 2], atol=1e-12)


def test_what_a_policy_reads():
    start = from_vector(np.zeros(6))
    seen = EndEffectorSpec(STATES).observe(np.stack([NOW, AHEAD]), np.array([0.02, 0.08]), AHEAD, start)
    np.testing.assert_allclose(seen["where"], [[-0.3, 0, 0], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(seen["turned"], [[1, 0, 0, 0, 1, 0]] * 2, atol=1e-6)
    np.testing.assert_allclose(seen["open"], [[0.02], [0.08]])
    np.testing.assert_allclose(seen["since"], [[0, -1, 0, 1, 0, 0]] * 2, atol=1e-6)  # first two rows
    assert all(value.dtype == np.float32 for value in seen.values())
    absolute = EndEffectorSpec(STATES, relative_states=False).observe(NOW[None], np.zeros(1), AHEAD, start)
    np.testing.assert_allclose(absolute["where"], [[1, 2, 0.5]])


@pytest.mark.parametrize("relative", [True, False])
def test_actions_there_and_back(relative):
    end_effector = EndEffectorSpec({}, relative_actions=relative)
    actions = end_effector.actions(AHEAD[None], np.array([0.05]), NOW)
    turn = [1, 0, 0, 0, 1, 0] if relative else [0, -1, 0, 1, 0, 0]
    np.testing.assert_allclose(actions, [[*((0.3, 0, 0) if relative else (1, 2.3, 0.5)), *turn, 0.05]], atol=1e-6)
    poses, openings = end_effector.targets(np.stack([actions, actions]), np.stack([NOW, NOW]))
    np.testing.assert_allclose(poses, np.stack([AHEAD, AHEAD])[:, None], atol=1e-6)
    np.testing.assert_allclose(openings, [[0.05]] * 2)


@pytest.mark.parametrize("rows", [[0, 2, 0, 3, 5, 0], [-1, -1, 1, 1, 1, -1], [0, 3, 0, 0, 0, 0], [2, 0, 0, 2, 0, 0]])
def test_any_two_rows_become_a_rotation_with_the_first(rows):
    matrix = matrix_from_6d(np.array(rows, np.float32))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)
    np.testing.assert_allclose(matrix[0], rows[:3] / np.linalg.norm(rows[:3]), atol=1e-7)
    assert rows != [0, 2, 0, 3, 5, 0] or np.allclose(matrix[1], [1, 0, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EndEffectorSpec({"x": "colour"}), "end_effector.states.x='colour'"),
        (lambda: EndEffectorSpec({}).targets(np.zeros((1, 10)), NOW), "names no rotation: its first row is zero"),
        (lambda: matrix_from_6d(np.array([np.nan, 0, 0, 0, 1, 0])), "not finite"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
