"""Errors of camera motion, against poses worked out by hand."""

import numpy as np
import pytest

from unified_video_action.evaluation.inverse_dynamics import PoseErrors, pose_errors, standing_still, windows_of
from unified_video_action.poses import HandSpec

HAND = HandSpec({"position": "position"})
UPRIGHT = [1, 0, 0, 0, 1, 0]
QUARTER_TURN = [0, -1, 0, 1, 0, 0]  # first two rows of a turn by 90 degrees about z


def chunk(*steps: list[float]) -> np.ndarray:
    """(1, A, 10) of one window."""
    return np.float32([steps])


def test_centimetres_and_degrees() -> None:
    true = chunk([0.00, 0, 0, *UPRIGHT, 0.05], [0.10, 0, 0, *QUARTER_TURN, 0.05])
    predicted = chunk([0.03, 0.04, 0, *UPRIGHT, 0.01], [0.10, 0, 0.02, *UPRIGHT, 0.05])
    errors = pose_errors(predicted, true, np.array([[True, True]]), HAND)
    np.testing.assert_allclose(errors.position, [[5.0, 2.0]], atol=1e-4)
    np.testing.assert_allclose(errors.rotation, [[0.0, 90.0]], atol=1e-3)
    still = pose_errors(standing_still(true, HAND), true, np.array([[True, True]]), HAND)
    np.testing.assert_allclose(still.position, [[0.0, 10.0]], atol=1e-4)
    np.testing.assert_allclose(still.rotation, [[0.0, 90.0]], atol=1e-3)


def test_steps_beyond_the_episode_do_not_count() -> None:
    true = chunk([0, 0, 0, *UPRIGHT, 0], [0, 0, 0, *UPRIGHT, 0])
    predicted = chunk([0.01, 0, 0, *UPRIGHT, 0], [5.0, 0, 0, *QUARTER_TURN, 0])
    row = pose_errors(predicted, true, np.array([[True, False]]), HAND).summary()
    assert row["position_cm"]["mean"] == pytest.approx(1.0, abs=1e-4) and row["rotation_deg"]["mean"] == 0


def test_summary() -> None:
    position = np.array([[1.0, 3.0], [2.0, 6.0], [3.0, np.nan]])
    row = PoseErrors(position, 10 * position).summary()
    assert row["position_cm"]["mean"] == pytest.approx((2 + 4 + 3) / 3)
    assert row["position_cm"]["median"] == 3 and row["position_cm"]["windows"] == 3
    assert row["position_cm"]["low"] < 3 < row["position_cm"]["high"]
    np.testing.assert_allclose(row["rotation_deg"]["by_step"], [20, 45])


def test_absolute_actions_do_not_tell_where_the_hand_stands() -> None:
    with pytest.raises(ValueError, match="relative_actions=false"):
        standing_still(chunk([0, 0, 0, *UPRIGHT, 0]), HandSpec({}, relative_actions=False))


def test_windows_are_spread_evenly() -> None:
    assert windows_of(range(10), 3) == [0, 3, 6] and windows_of(range(2), 5) == [0, 1]
