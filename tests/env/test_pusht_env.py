"""PushT against the stored demonstrations, Diffusion Policy's start states, and the rules of gymnasium."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import zarr
from gym_pusht.envs.pusht import PushTEnv as GymPushTEnv
from gymnasium.utils.env_checker import check_env

from unified_video_action.env.pusht.env import DEFAULT_GOAL, PushTEnv, start_state
from unified_video_action.env.pusht.geometry import state_targets
from unified_video_action.env.pusht.renderer import render_states
from unified_video_action.env.system_libraries import missing_library_message

OTHER_GOAL = (150.0, 340.0, -2.0)


@pytest.fixture
def env() -> PushTEnv:
    return PushTEnv()


@pytest.fixture(scope="module")
def demonstrations(pusht_zip: Path):
    """The published store, and the rows where its episodes begin and end."""
    with zarr.storage.ZipStore(pusht_zip, mode="r") as store:
        root = zarr.open_group(store, path="pusht/pusht_cchi_v7_replay.zarr", mode="r")
        ends = root["meta/episode_ends"][:]
        yield root, np.concatenate([[0], ends[:-1]]), ends


def test_frames_equal_the_stored_ones(demonstrations) -> None:
    root, _, _ = demonstrations
    states = root["data/state"][:2000:90]
    stored = root["data/img"][:2000][::90].astype(np.int32)
    error = np.abs(render_states(states) - stored)  # (N, 96, 96, 3)
    assert error.mean() < 0.12
    assert error.mean(axis=(1, 2, 3)).max() < 0.2
    differing = (error.max(axis=-1) > 8).sum(axis=(1, 2))  # of 9216 pixels
    assert differing.mean() < 38 and differing.max() <= 55


def test_replaying_stored_actions_moves_the_block_as_stored(demonstrations) -> None:
    root, starts, ends = demonstrations
    states, actions = root["data/state"][:].astype(np.float64), root["data/action"][:]
    env = PushTEnv(observe_image=False)
    for episode in (0, 1, 2, 43, 120, 205):  # the last three start with the agent touching the T
        rows = range(starts[episode], ends[episode])
        env.reset(options={"state": states[rows[0]]})
        for row in rows[:-1]:
            info = env.step(actions[row])[-1]
            np.testing.assert_allclose(info["state"][2:4], states[row + 1, 2:4], atol=1e-4, err_msg=f"row {row + 1}")


def test_seeds_start_as_in_diffusion_policy(env: PushTEnv) -> None:
    random = np.random.RandomState(100000)
    agent, block = random.randint(50, 450, size=2), random.randint(100, 400, size=2)
    angle = random.randn() * 2 * np.pi - np.pi
    np.testing.assert_array_equal(start_state(100000), [*agent, *block, angle])

    _, info = env.reset(seed=100000)
    theirs = GymPushTEnv()
    theirs.reset(options={"reset_to_state": start_state(100000)})  # sets the position first, then turns the T
    np.testing.assert_array_equal(info["state"][2:4], theirs.block.position)
    assert np.abs(info["state"][2:4] - block).max() > 10


def test_a_given_state_is_set_exactly_unless_legacy_is_asked(env: PushTEnv) -> None:
    state = np.array([100.0, 400.0, 300.0, 200.0, 1.25])
    _, info = env.reset(options={"state": state})
    np.testing.assert_allclose(info["state"], state, atol=1e-12)
    _, info = env.reset(options={"state": state, "legacy": True})
    assert np.abs(info["state"] - state)[2:4].max() > 10
    np.testing.assert_allclose(info["state"][[0, 1, 4]], state[[0, 1, 4]])


def test_observations_and_info(env: PushTEnv) -> None:
    observation, info = env.reset(seed=3)
    assert observation["image"].shape == (96, 96, 3) and observation["image"].dtype == np.uint8
    assert observation["agent_pos"].shape == (2,) and observation["agent_pos"].dtype == np.float32
    np.testing.assert_array_equal(observation["image"], render_states(info["state"][None])[0])
    theirs = GymPushTEnv(obs_type="pixels")
    frame, _ = theirs.reset(options={"reset_to_state": start_state(3)})
    np.testing.assert_array_equal(observation["image"], frame)  # the faster way to a frame changes nothing

    assert set(PushTEnv(observe_image=False).reset(seed=3)[0]) == {"agent_pos"}
    assert PushTEnv(image_size=64).reset(seed=3)[0]["image"].shape == (64, 64, 3)


def test_a_block_on_the_goal_is_a_success(env: PushTEnv) -> None:
    on_goal = [50.0, 50.0, *DEFAULT_GOAL]
    _, info = env.reset(options={"state": on_goal})
    assert info["coverage"] == pytest.approx(1) and info["score"] == 1 and info["is_success"] is True
    _, _, terminated, truncated, info = env.step(np.array([50, 50], np.float32))
    assert terminated is True and truncated is False and info["is_success"] is True

    _, info = env.reset(options={"state": [50.0, 50.0, DEFAULT_GOAL[0] + 20, *DEFAULT_GOAL[1:]]})
    assert 0.5 < info["coverage"] < 0.9
    assert info["score"] == pytest.approx(info["coverage"] / 0.95) and info["is_success"] is False


def test_the_goal_can_change_with_every_episode(env: PushTEnv) -> None:
    first, _ = env.reset(seed=1)
    second, info = env.reset(seed=1, options={"goal": OTHER_GOAL})
    assert info["coverage"] != env.reset(seed=1)[1]["coverage"] or (first["image"] != second["image"]).any()
    _, info = env.reset(options={"goal": OTHER_GOAL, "state": [400.0, 60.0, *OTHER_GOAL]})
    assert info["is_success"]

    light_green = np.array([144, 238, 144])
    centre = np.array(OTHER_GOAL[:2]) + 45 * np.array([-np.sin(OTHER_GOAL[2]), np.cos(OTHER_GOAL[2])])
    column, row = (centre * 96 / 512).astype(int)
    away = np.array([400.0, 60.0, 400.0, 100.0, 0.0])
    drawn = render_states(np.stack([away, away]), OTHER_GOAL)[1]
    np.testing.assert_array_equal(drawn[row, column], light_green)
    np.testing.assert_array_equal(drawn, PushTEnv(goal=OTHER_GOAL).reset(options={"state": away})[0]["image"])
    np.testing.assert_array_equal(env.reset(seed=1)[0]["image"], first["image"])  # the default has come back


def test_equal_seeds_give_equal_episodes_and_leave_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002

    def play(env: PushTEnv) -> list[np.ndarray]:
        env.reset(seed=7)
        second_start = env.reset()[1]["state"]  # drawn from the generator that seed 7 has set
        actions = np.random.default_rng(0).uniform(0, 512, (20, 2))
        return [second_start] + [env.step(action)[-1]["state"] for action in actions]

    np.testing.assert_array_equal(play(PushTEnv()), play(PushTEnv(observe_image=False)))
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_actions_can_be_tried_out(env: PushTEnv) -> None:
    steps, untouched = (4, 8, 16), PushTEnv(observe_image=False)
    rng, moved = np.random.default_rng(0), 0
    for seed in (0, 3):
        env.reset(seed=seed)
        untouched.reset(seed=seed)
        for _ in range(4):
            before = env.state
            chunks = before[2:4] + 0.4 * rng.normal(0, 60, (3, 16, 2)).cumsum(axis=1)  # about the T
            tried = env.try_actions(chunks, steps)
            np.testing.assert_array_equal(env.state, before)
            states = [env.step(action)[-1]["state"] for action in chunks[1]]
            np.testing.assert_array_equal(tried[1], state_targets(np.stack(states))[[3, 7, 15]])
            for action in chunks[1]:
                untouched.step(action)
            np.testing.assert_array_equal(env.state, untouched.state)  # trying leaves no trace, not even in contacts
            moved += np.abs(env.state - before)[2:4].max() > 1
    assert moved > 3


def test_what_is_tried_ends_with_success(env: PushTEnv) -> None:
    env.reset(options={"state": [256.0, 150.0, *DEFAULT_GOAL]})
    chunk = np.stack([np.full(16, 256.0), 150.0 + 15 * np.arange(16)], axis=1)  # through the T
    ((first, last),) = env.try_actions(chunk[None], (1, 16))
    assert env.step(chunk[0])[2] is True
    np.testing.assert_array_equal(first, last)  # although the agent goes on to push the T away
    np.testing.assert_array_equal(first, state_targets(env.state))
    for action in chunk[1:]:
        env.step(action)
    assert np.abs(env.state[2:4] - DEFAULT_GOAL[:2]).max() > 20


def test_gymnasium_is_content(env: PushTEnv) -> None:
    assert isinstance(env, gymnasium.Env)
    check_env(env, skip_render_check=True)
    assert env.render().shape == (680, 680, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda env: env.step(np.array([np.nan, 1.0])), "action must be 2 finite numbers"),
        (lambda env: env.step(np.zeros(3)), "action must be 2 finite numbers"),
        (lambda env: env.reset(options={"state": np.zeros(4)}), "state must be 5 finite numbers"),
        (lambda env: env.reset(options={"goal": (1, 2)}), "goal must be 3 finite numbers"),
        (lambda env: env.reset(options={"gaol": DEFAULT_GOAL}), r"unknown reset options \['gaol'\]"),
        (lambda env: PushTEnv(image_size=0), "image_size must be at least 8"),
    ],
)
def test_bad_input_is_named(env: PushTEnv, call, message: str) -> None:
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        call(env)


def test_a_missing_system_library_is_named_with_its_remedy(tmp_path: Path) -> None:
    fault = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({fault!r})")
    result = subprocess.run(
        [sys.executable, "-c", "import unified_video_action.env.pusht.env"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])])},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "libGL.so.1 is missing; install it with: sudo apt-get install -y libgl1" in result.stderr.splitlines()[-1]

    assert "apt-file search libodd.so.3" in missing_library_message("libodd.so.3: cannot open shared object file: x")
    assert missing_library_message("No module named 'cv2'") is None
