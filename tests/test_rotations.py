"""Forms of rotations, against rotations worked out by hand and against scipy's."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from unified_video_action.rotations import (
    axis_angle_from_6d,
    axis_angle_to_6d,
    from_pose_actions,
    matrix_from_6d,
    quaternion_to_axis_angle,
    to_pose_actions,
)

QUARTER = np.pi / 2


def test_six_numbers_are_the_first_two_rows():
    about_z = axis_angle_to_6d(np.array([0, 0, QUARTER]))  # rows (0, -1, 0), (1, 0, 0), (0, 0, 1)
    np.testing.assert_allclose(about_z, [0, -1, 0, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(matrix_from_6d(about_z), [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(quaternion_to_axis_angle([0, 0, np.sqrt(0.5), np.sqrt(0.5)]), [0, 0, QUARTER])


def test_there_and_back_in_any_shape():
    vectors = Rotation.random(12, np.random.default_rng(0)).as_rotvec().reshape(3, 4, 3)
    np.testing.assert_allclose(axis_angle_from_6d(axis_angle_to_6d(vectors)), vectors, atol=1e-7)
    actions = np.concatenate([np.ones((3, 4, 3)), vectors, -np.ones((3, 4, 1))], axis=-1)
    poses = to_pose_actions(actions)
    assert poses.shape == (3, 4, 10) and poses.dtype == np.float32
    np.testing.assert_allclose(from_pose_actions(poses), actions, atol=1e-5)


def test_rows_are_made_unit_and_square_keeping_the_first():
    matrix = matrix_from_6d(np.array([0.0, 2, 0, 3, 5, 0]))
    np.testing.assert_allclose(matrix, [[0, 1, 0], [1, 0, 0], [0, 0, -1]], atol=1e-12)


@pytest.mark.parametrize("rows", [[-1, -1, 1, 1, 1, -1], [0, 3, 0, 0, 0, 0], [2, 0, 0, 2, 0, 0]])
def test_parallel_rows_become_a_rotation_with_the_first(rows: list[float]):
    matrix = matrix_from_6d(np.array(rows, np.float32))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)
    np.testing.assert_allclose(matrix[0], rows[:3] / np.linalg.norm(rows[:3]), atol=1e-7)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="names no rotation: its first row is zero"):
        matrix_from_6d(np.zeros((2, 6)))
    with pytest.raises(ValueError, match="not finite"):
        matrix_from_6d(np.array([np.nan, 0, 0, 0, 1, 0]))
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 7\)"):
        to_pose_actions(np.zeros((2, 6)))
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 10\)"):
        from_pose_actions(np.zeros((2, 7)))
