"""Whether actions are poses or steps: judged by the end effector's motion, for arms of any size."""

import json

import numpy as np
import pytest

from unified_video_action.env.robomimic.action_kind import ActionKind, kind_of_actions

ENDS = np.array([60, 100, 150])
TURN = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
DELTA = json.dumps({"env_kwargs": {"controller_configs": {"type": "OSC_POSE", "control_delta": True}}})
ABSOLUTE = DELTA.replace("true", "false")


def recording(size: float, centre=(0.0, 0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """Positions (150, 3) of an end effector that follows commanded positions (150, 3), over some `size` metres."""
    rng, effector, commanded = np.random.default_rng(0), [], []
    for length in np.diff(ENDS, prepend=0):
        goals = rng.uniform(-1, 1, (length // 20 + 1, 3)) * size
        at = goals[0] + rng.normal(size=3) * size / 4
        for step in range(length):
            effector.append(at)
            commanded.append(at + 0.3 * (goals[step // 20] - at) + rng.normal(size=3) * 0.02 * size)
            at = at + 0.7 * (commanded[-1] - at)
    return np.array(effector) + centre, np.array(commanded) + centre


def kind(position: np.ndarray, effector: np.ndarray, arguments: str | None = None) -> ActionKind:
    return kind_of_actions(np.concatenate([position, np.zeros((150, 4))], axis=1), effector, ENDS, arguments)


@pytest.mark.parametrize(("size", "centre"), [(0.01, (0, 0, 0)), (0.1, (0.2, 0, 0.15)), (2.0, (0, 0, 1.0))])
@pytest.mark.parametrize("arguments", [None, DELTA, ABSOLUTE])  # may be of the recording's controller
def test_arms_of_any_size(size, centre, arguments):
    effector, commanded = recording(size, centre)
    assert kind(commanded, effector, arguments) is ActionKind.POSES
    assert kind(commanded - effector, effector, arguments) is ActionKind.STEPS  # metres
    assert kind((commanded - effector) / 0.05, effector, arguments) is ActionKind.STEPS  # shares of the largest step
    assert kind(commanded + [3 * size, 0, -4 * size], effector, arguments) is ActionKind.OTHER_FRAME
    assert kind(commanded @ TURN + [3 * size, 0, 0], effector, arguments) is ActionKind.OTHER_FRAME


def test_what_motion_does_not_tell_the_file_may():
    effector, _ = recording(0.1)
    noise = np.random.default_rng(1).normal(size=effector.shape)
    assert (
        kind(noise, effector) is kind(noise, effector, "{}") is kind(noise, effector, "no JSON") is ActionKind.UNCLEAR
    )
    assert kind(noise, effector, DELTA) is ActionKind.STEPS
    assert kind(noise, effector, ABSOLUTE) is ActionKind.UNCLEAR  # far from all positions of the end effector
    assert kind(0.1 * noise, effector, ABSOLUTE) is ActionKind.POSES
