"""Poses against ones worked out by hand."""

import numpy as np
import pytest

from unified_video_action.poses import HandSpec, distance, from_vector, inverse, relative_to, to_vector

QUARTER = np.pi / 2
NOW = from_vector(np.array([1.0, 2.0, 0.5, 0, 0, QUARTER]))  # at (1, 2, 0.5), its x axis along the base's y
AHEAD = from_vector(np.array([1.0, 2.3, 0.5, 0, 0, QUARTER]))  # 0.3 m along its own x axis


def test_six_numbers_and_back() -> None:
    np.testing.assert_allclose(NOW[:3, :3], [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(to_vector(NOW), [1, 2, 0.5, 0, 0, QUARTER], atol=1e-12)
    many = np.random.default_rng(0).normal(size=(2, 5, 6))
    np.testing.assert_allclose(to_vector(from_vector(many))[..., :3], many[..., :3])
    np.testing.assert_allclose(from_vector(to_vector(from_vector(many))), from_vector(many), atol=1e-12)


def test_relative_poses() -> None:
    np.testing.assert_allclose(NOW @ inverse(NOW), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(to_vector(relative_to(AHEAD[None], NOW)), [[0.3, 0, 0, 0, 0, 0]], atol=1e-12)
    metres, radians = distance(NOW, from_vector(np.array([1.0, 2.0, 0.9, 0, 0, 0])))
    assert metres == pytest.approx(0.4) and radians == pytest.approx(QUARTER)


STATES = {"where": "position", "turned": "rotation_6d", "open": "gripper", "since": "rotation_6d_from_start"}


def test_what_a_policy_reads() -> None:
    start = from_vector(np.zeros(6))
    seen = HandSpec(STATES).observe(np.stack([NOW, AHEAD]), np.array([0.02, 0.08]), AHEAD, start)
    np.testing.assert_allclose(seen["where"], [[-0.3, 0, 0], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(seen["turned"], [[1, 0, 0, 0, 1, 0]] * 2, atol=1e-6)
    np.testing.assert_allclose(seen["open"], [[0.02], [0.08]])
    np.testing.assert_allclose(seen["since"], [[0, -1, 0, 1, 0, 0]] * 2, atol=1e-6)  # first two rows
    assert all(value.dtype == np.float32 for value in seen.values())
    absolute = HandSpec(STATES, relative_states=False).observe(NOW[None], np.zeros(1), AHEAD, start)
    np.testing.assert_allclose(absolute["where"], [[1, 2, 0.5]])


@pytest.mark.parametrize("relative", [True, False])
def test_actions_there_and_back(relative: bool) -> None:
    hand = HandSpec({}, relative_actions=relative)
    actions = hand.actions(AHEAD[None], np.array([0.05]), NOW)
    turn = [1, 0, 0, 0, 1, 0] if relative else [0, -1, 0, 1, 0, 0]
    np.testing.assert_allclose(actions, [[*((0.3, 0, 0) if relative else (1, 2.3, 0.5)), *turn, 0.05]], atol=1e-6)
    poses, openings = hand.targets(actions, NOW)
    np.testing.assert_allclose(poses, AHEAD[None], atol=1e-6)
    np.testing.assert_allclose(openings, [0.05])
    batched = hand.targets(np.stack([actions, actions]), np.stack([NOW, NOW]))[0]
    np.testing.assert_allclose(batched, np.stack([AHEAD, AHEAD])[:, None], atol=1e-6)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="hand.states.x='colour'"):
        HandSpec({"x": "colour"})
    with pytest.raises(ValueError, match="7 numbers: expected 10"):
        HandSpec({}).targets(np.zeros((1, 7)), NOW)
    with pytest.raises(ValueError, match="first row is zero"):
        HandSpec({}).targets(np.zeros((1, 10)), NOW)
