"""Errors of camera motion, against poses worked out by hand."""

import numpy as np
import pytest

from unified_video_action.evaluation.inverse_dynamics import pose_errors, standing_still, summary
from unified_video_action.poses import EndEffectorSpec

END_EFFECTOR = EndEffectorSpec({"position": "position"})
UPRIGHT = [1, 0, 0, 0, 1, 0]
QUARTER_TURN = [0, -1, 0, 1, 0, 0]  # first two rows of a turn by 90 degrees about z


def chunk(*steps: list[float]) -> np.ndarray:
    """(1, A, 10) of one window."""
    return np.float32([steps])


def test_centimetres_and_degrees() -> None:
    true = chunk([0.00, 0, 0, *UPRIGHT, 0.05], [0.10, 0, 0, *QUARTER_TURN, 0.05])
    predicted = chunk([0.03, 0.04, 0, *UPRIGHT, 0.01], [0.10, 0, 0.02, *UPRIGHT, 0.05])
    for chunks, centimetres, degrees in (
        (predicted, [5.0, 2.0], [0, 90]),
        (standing_still(true, END_EFFECTOR), [0, 10], [0, 90]),
    ):
        position, rotation = pose_errors(chunks, true, np.array([[True, True]]), END_EFFECTOR)
        np.testing.assert_allclose(position, [centimetres], atol=1e-4)
        np.testing.assert_allclose(rotation, [degrees], atol=1e-3)
    beyond = pose_errors(predicted, true, np.array([[True, False]]), END_EFFECTOR)  # the second step does not count
    assert [summary(errors, np.zeros(1))["mean"] for errors in beyond] == pytest.approx([5, 0], abs=1e-4)
