"""Block pushing in pybullet: conventions of the environment, its physics, and its pictures."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="pybullet is not installed; add the simulators with: make sims")

from unified_video_action.env.block_push.env import BlockPushEnv
from unified_video_action.env.block_push.layout import (
    BLOCK_DISTANCE,
    BLOCK_HEIGHT,
    BLOCK_SIDE,
    EFFECTOR_RADIUS,
    HIGH,
    LOW,
    STEP,
    join_state,
    split_state,
    start_state,
)

SQUARES = np.array([[0.28, 0.2, 0.0], [0.52, 0.2, 0.0]])
APART = np.array([[0.3, -0.2, 0.0], [0.5, -0.2, 0.0]])  # blocks out of each other's way


@pytest.fixture(scope="module")
def blind():
    """An environment without frames, which each test resets."""
    env = BlockPushEnv(observe_image=False)
    yield env
    env.close()


@pytest.fixture(scope="module")
def seeing():
    env = BlockPushEnv()
    yield env
    env.close()


def start(env: BlockPushEnv, effector=(0.3, -0.4), blocks=APART, squares=SQUARES):
    return env.reset(options={"state": join_state(np.array(effector), np.array(blocks), np.array(squares))})


def push(env: BlockPushEnv, *targets, steps: int = 40) -> dict:
    """Go from target to target, at most `steps` each; the last info."""
    for target in targets:
        for _ in range(steps):
            observation, _, _, _, info = env.step(np.array(target))
            if np.linalg.norm(observation["effector"] - target) < 1e-3:
                break
    return info


def pixels(image: np.ndarray, colour: str) -> np.ndarray:
    """(N, 2) rows and columns of strong red or green."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    strong = {"red": (red > 110) & (green < 60) & (blue < 60), "green": (green > 70) & (red < 45) & (blue < 60)}
    return np.argwhere(strong[colour])


def test_observations_are_as_their_space_says():
    env = BlockPushEnv(image_size=240)
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation) and observation["image"].shape == (240, 320, 3)
    stepped, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(stepped) and not terminated and not truncated
    assert reward == info["score"] == 0.0 and info["is_success"] is False
    np.testing.assert_allclose(stepped["effector"], info["state"][:2], atol=1e-6)
    env.close()
    env.close()  # twice is no harm
    with pytest.raises(RuntimeError, match="the environment is closed"):
        env.step([0.3, 0.0])


def test_a_seed_decides_the_episode_whatever_went_before(blind):
    rng = np.random.default_rng(0)
    actions = rng.uniform(LOW, HIGH, (25, 2))

    def play(env):
        states = [env.reset(seed=11)[1]["state"], *(env.step(action)[4]["state"] for action in actions)]
        return np.array(states)

    blind.reset(seed=4)
    push(blind, (0.3, 0.1), (0.5, -0.3))
    first = play(blind)
    other = BlockPushEnv(observe_image=False)
    np.testing.assert_array_equal(first, play(other))
    np.testing.assert_array_equal(first, play(other))
    assert not np.array_equal(first[0], other.reset(seed=12)[1]["state"])
    other.close()


def test_starts_are_apart_and_on_the_table():
    rng = np.random.default_rng(0)
    blocks, squares = zip(*(split_state(start_state(rng))[1:] for _ in range(300)))
    blocks, squares = np.array(blocks), np.array(squares)  # (300, 2, 3)
    assert (abs(blocks[:, 0, 0] - blocks[:, 1, 0]) > BLOCK_DISTANCE).all()
    assert blocks[..., 1].min() > -0.35 and blocks[..., 1].max() < -0.05
    assert (np.linalg.norm(squares[:, 0, :2] - squares[:, 1, :2], axis=1) > 0.2).all()
    assert 0.3 < (squares[:, 0, 0] < squares[:, 1, 0]).mean() < 0.7  # either square may be the nearer one


def test_the_effector_goes_to_its_target_no_faster_than_it_may(blind):
    observation, _ = start(blind, effector=(0.2, 0.0))
    here = observation["effector"]
    for expected in (0.23, 0.26, 0.27, 0.27):
        here = blind.step([0.27, 0.0])[0]["effector"]
        np.testing.assert_allclose(here, [expected, 0.0], atol=1e-3)
    before = here
    here = blind.step([0.6, 0.4])[0]["effector"]
    assert np.linalg.norm(here - before) == pytest.approx(STEP, abs=1e-3)
    assert (here - before)[1] / (here - before)[0] == pytest.approx(0.4 / 0.33, rel=0.02)  # straight towards it
    start(blind, effector=(0.2, 0.4))
    for _ in range(8):
        observation = blind.step([-3.0, 7.0])[0]
    np.testing.assert_allclose(observation["effector"], [LOW[0], HIGH[1]], atol=1e-3)  # no farther than the table


def test_a_pushed_block_moves_with_the_effector(blind):
    start(blind, effector=(0.3, -0.3))
    contact = -0.2 - BLOCK_SIDE / 2 - EFFECTOR_RADIUS
    before = split_state(push(blind, (0.3, contact - 0.004))["state"])[1]
    np.testing.assert_allclose(before, APART, atol=1e-3)  # not touched yet, angles included
    for y in np.arange(contact, 0.0, 0.02):
        effector, after, squares = split_state(blind.step([0.3, y])[4]["state"])
    np.testing.assert_allclose(after[0, :2] - effector, [0, -contact - 0.2], atol=4e-3)  # still touching
    np.testing.assert_allclose(after[1], APART[1], atol=1e-3)  # the other block stays
    np.testing.assert_allclose(squares, SQUARES)
    rested = split_state(push(blind, (0.3, -0.1), steps=10)["state"])[1]
    np.testing.assert_allclose(rested[0, :2], after[0, :2], atol=1.5e-2)  # it glides no farther, and does not stick


@pytest.mark.parametrize("direction", [(0, 1), (-0.7, 0.7)])
def test_nothing_tunnels_and_blocks_stay_on_the_table(blind, direction):
    """At full speed, against both blocks in a row."""
    direction = np.array(direction) / np.linalg.norm(direction)
    centre = np.array([0.42, 0.0])
    blocks = np.array([[*centre, 0.3], [*(centre + 0.08 * direction), 1.0]])
    start(blind, effector=centre - 0.1 * direction, blocks=blocks, squares=[[0.2, 0.4, 0], [0.6, 0.45, 0]])
    for step in range(7):
        _, _, _, _, info = blind.step(centre - 0.1 * direction + (step + 1) * STEP * direction)
        effector, moved, _ = split_state(info["state"])
        gaps = np.linalg.norm(moved[:, :2] - effector, axis=1)
        assert gaps.min() > BLOCK_SIDE / 2 + EFFECTOR_RADIUS - 4e-3
        assert np.linalg.norm(moved[0, :2] - moved[1, :2]) > BLOCK_SIDE - 4e-3
        heights = [blind.scene._bullet.getBasePositionAndOrientation(block)[0][2] for block in blind.scene._blocks]
        np.testing.assert_allclose(heights, BLOCK_HEIGHT / 2, atol=5e-3)
    assert (moved[0, :2] - centre) @ direction > 0.05


@pytest.mark.parametrize(
    ("places", "names", "score"),
    [
        ([(0.28, 0.2), (0.52, 0.2)], {"red_in_red", "green_in_green"}, 1.0),
        ([(0.52, 0.2), (0.28, 0.2)], {"red_in_green", "green_in_red"}, 1.0),
        ([(0.28, 0.24), (0.5, -0.2)], {"red_in_red"}, 0.5),
        ([(0.4, 0.0), (0.28, 0.16)], {"green_in_red"}, 0.5),
        ([(0.255, 0.2), (0.31, 0.2)], {"red_in_red", "green_in_red"}, 0.5),  # both in one square
        ([(0.28, 0.26), (0.5, -0.2)], set(), 0.0),
    ],
)
def test_metrics_and_scores(blind, places, names, score):
    _, info = start(blind, blocks=[(*place, 0.0) for place in places])
    pairs = {name: info[name] for name in ("red_in_red", "red_in_green", "green_in_red", "green_in_green")}
    assert {name for name, value in pairs.items() if value == 1.0} == names and set(pairs.values()) <= {0.0, 1.0}
    assert info["score"] == score and info["is_success"] is (score == 1.0)


def test_pushing_a_block_into_a_square_scores_and_the_second_one_ends_the_episode(blind):
    start(blind, effector=(0.3, -0.15), blocks=[[0.3, 0.05, 0], [0.52, 0.1, 0]], squares=SQUARES + [0.02, 0, 0])
    assert push(blind, (0.3, 0.14))["red_in_red"] == 1.0
    push(blind, (0.3, 0.05), (0.52, -0.05))
    for y in np.arange(-0.03, 0.3, 0.02):
        _, reward, terminated, truncated, info = blind.step([0.52, y])
        if terminated:
            break
    assert terminated and not truncated and reward == info["score"] == 1.0 and info["green_in_green"] == 1.0


def test_the_camera_faces_the_robot_and_shows_colours_and_squares_where_the_state_says(seeing):
    image = start(seeing, squares=SQUARES[::-1])[0]["image"]
    red, green = pixels(image, "red"), pixels(image, "green")
    assert min(len(red), len(green)) >= 12
    red, green = red.mean(axis=0), green.mean(axis=0)
    assert green[0] > red[0] + 10  # a greater x is nearer to the camera, so lower in the frame
    assert abs(green[1] - red[1]) < 8 and red[1] < 64  # y = -0.2 is left of the middle
    image = image.astype(int)
    pale_red = np.argwhere((image[..., 0] > 200) & (image[..., 1] < 190)).mean(axis=0)
    pale_green = np.argwhere((image[..., 1] > 180) & (image[..., 0] < 185) & (image[..., 2] < 185)).mean(axis=0)
    assert pale_red[0] > pale_green[0] + 10 and pale_red[1] > 64 and pale_green[1] > 64
    for corner in ((0.3, -0.45), (0.6, 0.35)):  # every place that the effector reaches is in the frame
        image = start(seeing, effector=corner)[0]["image"].astype(int)
        assert ((image[..., 2] > image[..., 0] + 25) & (image[..., 0] < 100)).sum() >= 12, corner


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *((lambda _, size=size: BlockPushEnv(size), ValueError, "image_size must be .* a multiple of 3")
          for size in (8, 100, 96.0)),
        *((lambda env, action=action: env.step(action), ValueError, "action must be 2 finite numbers")
          for action in ([0.3], [0.3, np.nan])),
        (lambda env: env.reset(options={"goal": 1}), ValueError, "unknown reset options \\['goal'\\]"),
        (lambda env: env.reset(options={"state": np.zeros(3)}), ValueError, "state must be 14 finite numbers"),
        (lambda _: BlockPushEnv(observe_image=False).step([0.3, 0.0]), RuntimeError, "never reset"),
    ],
)  # fmt: skip
def test_mistakes_are_named(blind, call, error, message):
    blind.reset(seed=0)
    with pytest.raises(error, match=message):
        call(blind)


def test_the_simulator_is_quiet():
    code = (
        "from unified_video_action.env.block_push.env import BlockPushEnv\n"
        "env = BlockPushEnv(); env.reset(seed=0); env.step([0.3, 0.0]); env.close()\n"
        "import sys; sys.stderr.write('still heard')"
    )
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "still heard")
