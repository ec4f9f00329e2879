"""Block pushing in pybullet: conventions of the environment, its physics, and its pictures."""

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="pybullet is not installed; add the simulators with: make sims")

from unified_video_action.env.block_push.env import BlockPushEnv
from unified_video_action.env.block_push.layout import (
    BLOCK_HEIGHT,
    BLOCK_SIDE,
    EFFECTOR_RADIUS,
    HIGH,
    LOW,
    STEP,
    join_state,
    split_state,
)

SQUARES = np.array([[0.28, 0.2, 0.0], [0.52, 0.2, 0.0]])
APART = np.array([[0.3, -0.2, 0.0], [0.5, -0.2, 0.0]])  # blocks out of each other's way


@pytest.fixture(scope="module")
def blind():
    """An environment without frames, which each test resets."""
    env = BlockPushEnv(observe_image=False)
    yield env
    env.close()


def start(env: BlockPushEnv, effector=(0.3, -0.4), blocks=APART, squares=SQUARES):
    return env.reset(options={"state": join_state(np.array(effector), np.array(blocks), np.array(squares))})


def go(env: BlockPushEnv, *targets) -> dict:
    """Go to target after target; the last info."""
    for target in targets:
        for _ in range(40):
            observation, _, _, _, info = env.step(np.array(target))
            if np.linalg.norm(observation["effector"] - target) < 1e-3:
                break
    return info


def test_observations_are_as_their_space_says():
    env = BlockPushEnv(image_size=240)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation) and observation["image"].shape == (240, 320, 3)
    stepped, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(stepped) and not terminated and not truncated
    assert reward == info["score"] == 0.0 and info["is_success"] is False
    np.testing.assert_allclose(stepped["effector"], info["state"][:2], atol=1e-6)
    env.close()
    env.close()  # twice is harmless
    with pytest.raises(RuntimeError, match="the environment is closed"):
        env.step([0.3, 0.0])


def test_a_seed_decides_the_episode_whatever_went_before(blind):
    actions = np.random.default_rng(0).uniform(LOW, HIGH, (25, 2))

    def play(env):
        return np.array([env.reset(seed=11)[1]["state"], *(env.step(action)[4]["state"] for action in actions)])

    blind.reset(seed=4)
    go(blind, (0.3, 0.1), (0.5, -0.3))
    first, other = play(blind), BlockPushEnv(observe_image=False)
    np.testing.assert_array_equal(first, play(other))
    np.testing.assert_array_equal(first, play(other))
    assert not np.array_equal(first[0], other.reset(seed=12)[1]["state"])
    other.close()


def test_the_effector_goes_to_its_target_no_faster_than_it_may(blind):
    start(blind, effector=(0.2, 0.0))
    for expected in (0.23, 0.26, 0.27, 0.27):
        before = blind.step([0.27, 0.0])[0]["effector"]
        np.testing.assert_allclose(before, [expected, 0.0], atol=1e-3)
    way = blind.step([0.6, 0.4])[0]["effector"] - before
    assert np.linalg.norm(way) == pytest.approx(STEP, abs=1e-3)
    assert way[1] / way[0] == pytest.approx(0.4 / 0.33, rel=0.02)  # straight towards it
    start(blind, effector=(0.2, 0.4))
    for _ in range(8):
        here = blind.step([-3.0, 7.0])[0]["effector"]
    np.testing.assert_allclose(here, [LOW[0], HIGH[1]], atol=1e-3)  # no farther than the table


def test_nothing_tunnels_and_blocks_stay_on_the_table(blind):
    """At full speed, against both blocks in a row."""
    direction = np.array([-0.5, 0.5]) * 2**0.5
    centre = np.array([0.42, 0.0])
    blocks = np.array([[*centre, 0.3], [*(centre + 0.08 * direction), 1.0]])
    start(blind, effector=centre - 0.1 * direction, blocks=blocks, squares=[[0.2, 0.4, 0], [0.6, 0.45, 0]])
    scene = blind.scene
    for step in range(7):
        info = blind.step(centre - 0.1 * direction + (step + 1) * STEP * direction)[4]
        effector, moved, _ = split_state(info["state"])
        assert np.linalg.norm(moved[:, :2] - effector, axis=1).min() > BLOCK_SIDE / 2 + EFFECTOR_RADIUS - 4e-3
        assert np.linalg.norm(moved[0, :2] - moved[1, :2]) > BLOCK_SIDE - 4e-3
        heights = [scene._bullet.getBasePositionAndOrientation(block)[0][2] for block in scene._blocks]
        np.testing.assert_allclose(heights, BLOCK_HEIGHT / 2, atol=5e-3)
    assert (moved[0, :2] - centre) @ direction > 0.05


@pytest.mark.parametrize(
    ("positions", "names", "score"),
    [
        ([(0.52, 0.2), (0.28, 0.2)], {"red_in_green", "green_in_red"}, 1.0),
        ([(0.28, 0.24), (0.5, -0.2)], {"red_in_red"}, 0.5),
        ([(0.255, 0.2), (0.31, 0.2)], {"red_in_red", "green_in_red"}, 0.5),  # both in one square
        ([(0.28, 0.26), (0.5, -0.2)], set(), 0.0),
    ],
)
def test_metrics_and_scores(blind, positions, names, score):
    _, info = start(blind, blocks=[(*position, 0.0) for position in positions])
    pairs = {name: info[name] for name in ("red_in_red", "red_in_green", "green_in_red", "green_in_green")}
    assert {name for name, value in pairs.items() if value == 1.0} == names and set(pairs.values()) <= {0.0, 1.0}
    assert info["score"] == score and info["is_success"] is (score == 1.0)


def test_the_camera_faces_the_robot_and_shows_colours_where_the_state_says():
    seeing = BlockPushEnv()
    red, green, blue = np.moveaxis(start(seeing)[0]["image"].astype(int), -1, 0)
    shown = {
        "red": np.argwhere((red > 110) & (green < 60) & (blue < 60)),
        "green": np.argwhere((green > 70) & (red < 45) & (blue < 60)),
    }
    red, green, blue = np.moveaxis(start(seeing, squares=SQUARES[::-1])[0]["image"].astype(int), -1, 0)
    shown["pale red"] = np.argwhere((red > 200) & (green < 190))
    shown["pale green"] = np.argwhere((green > 180) & (red < 185) & (blue < 185))
    assert min(map(len, shown.values())) >= 12
    at = {name: where.mean(axis=0) for name, where in shown.items()}  # row, column
    assert at["green"][0] > at["red"][0] + 10  # a greater x is nearer to the camera, so lower in the frame
    assert abs(at["green"][1] - at["red"][1]) < 8 and at["red"][1] < 64  # y = -0.2 is left of the middle
    assert at["pale red"][0] > at["pale green"][0] + 10 and min(at["pale red"][1], at["pale green"][1]) > 64
    for corner in ((0.3, -0.45), (0.6, 0.35)):  # every point that the effector reaches is in the frame
        image = start(seeing, effector=corner)[0]["image"].astype(int)
        assert ((image[..., 2] > image[..., 0] + 25) & (image[..., 0] < 100)).sum() >= 12, corner
    seeing.close()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda _: BlockPushEnv(100), ValueError, "image_size must be .* a multiple of 3"),
        (lambda env: env.step([0.3, np.nan]), ValueError, "action must be 2 finite numbers"),
        (lambda env: env.reset(options={"goal": 1}), ValueError, r"unknown reset options \['goal'\]"),
        (lambda _: BlockPushEnv(observe_image=False).step([0.3, 0.0]), RuntimeError, "never reset"),
    ],
)
def test_mistakes_are_named(blind, call, error, message):
    blind.reset(seed=0)
    with pytest.raises(error, match=message):
        call(blind)
