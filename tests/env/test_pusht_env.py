"""PushT against the stored demonstrations, Diffusion Policy's start states, and the rules of gymnasium."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from gym_pusht.envs.pusht import PushTEnv as GymPushTEnv
from gymnasium.utils.env_checker import check_env

from unified_video_action.env.pusht.env import DEFAULT_GOAL, PushTEnv, render_states, start_state
from unified_video_action.env.pusht.geometry import state_targets
from unified_video_action.env.system_libraries import missing_library_message


@pytest.fixture
def env() -> PushTEnv:
    return PushTEnv()


def test_pictures_and_motion_are_those_of_the_published_demonstrations(pusht_zip: Path) -> None:
    with zarr.storage.ZipStore(pusht_zip, mode="r") as store:
        root = zarr.open_group(store, path="pusht/pusht_cchi_v7_replay.zarr", mode="r")
        ends = root["meta/episode_ends"][:]
        states, actions = root["data/state"][:], root["data/action"][:]
        stored = root["data/img"][:2000][::90].astype(np.int32)
    error = np.abs(render_states(states[:2000:90]) - stored)  # (N, 96, 96, 3)
    assert error.mean() < 0.12 and error.mean(axis=(1, 2, 3)).max() < 0.2
    differing = (error.max(axis=-1) > 8).sum(axis=(1, 2))  # of 9216 pixels
    assert differing.mean() < 38 and differing.max() <= 55

    env, states = PushTEnv(observe_image=False), states.astype(np.float64)
    for episode in (0, 1, 43, 205):  # the last two start with the agent touching the T
        rows = range(ends[episode - 1] if episode else 0, ends[episode])
        env.reset(options={"state": states[rows[0]]})
        for row in rows[:-1]:
            info = env.step(actions[row])[-1]
            np.testing.assert_allclose(info["state"][2:4], states[row + 1, 2:4], atol=1e-4, err_msg=f"row {row + 1}")


def test_seeds_start_as_in_diffusion_policy(env: PushTEnv) -> None:
    random = np.random.RandomState(100000)
    agent, block = random.randint(50, 450, size=2), random.randint(100, 400, size=2)
    angle = random.randn() * 2 * np.pi - np.pi
    np.testing.assert_array_equal(start_state(100000), [*agent, *block, angle])
    observation, info = env.reset(seed=100000)
    theirs = GymPushTEnv(obs_type="pixels")
    frame, _ = theirs.reset(options={"reset_to_state": start_state(100000)})  # sets the position, then turns the T
    np.testing.assert_array_equal(info["state"][2:4], theirs.block.position)
    assert np.abs(info["state"][2:4] - block).max() > 10
    np.testing.assert_array_equal(observation["image"], frame)  # our faster way to a frame changes nothing


def test_a_block_on_the_goal_is_a_success(env: PushTEnv) -> None:
    _, info = env.reset(options={"state": [50.0, 50.0, *DEFAULT_GOAL]})
    assert info["coverage"] == pytest.approx(1) and info["score"] == 1 and info["is_success"] is True
    _, _, terminated, truncated, info = env.step(np.array([50, 50], np.float32))
    assert terminated is True and truncated is False and info["is_success"] is True
    _, info = env.reset(options={"state": [50.0, 50.0, DEFAULT_GOAL[0] + 20, *DEFAULT_GOAL[1:]]})
    assert 0.5 < info["coverage"] < 0.9
    assert info["score"] == pytest.approx(info["coverage"] / 0.95) and info["is_success"] is False


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
    env.reset(seed=3)
    untouched.reset(seed=3)
    for _ in range(4):
        before = env.state
        chunks = before[2:4] + 0.4 * rng.normal(0, 60, (2, 16, 2)).cumsum(axis=1)  # about the T
        tried = env.try_actions(chunks, steps)
        np.testing.assert_array_equal(env.state, before)
        states = [env.step(action)[-1]["state"] for action in chunks[1]]
        np.testing.assert_array_equal(tried[1], state_targets(np.stack(states))[[3, 7, 15]])
        for action in chunks[1]:
            untouched.step(action)
        np.testing.assert_array_equal(env.state, untouched.state)  # trying leaves no trace, not even in contacts
        moved += np.abs(env.state - before)[2:4].max() > 1
    assert moved > 1
    with pytest.raises(RuntimeError, match="(?s)a copy of the process failed: .*ValueError: action must be 2 finite"):
        env.try_actions(chunks * np.nan, steps)


def test_gymnasium_is_content() -> None:
    env = PushTEnv(image_size=64)
    check_env(env, skip_render_check=True)
    assert env.render().shape == (680, 680, 3)
    assert set(PushTEnv(observe_image=False).reset(seed=3)[0]) == {"agent_pos"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda env: env.step(np.array([np.nan, 1.0])), "action must be 2 finite numbers"),
        (lambda env: env.reset(options={"state": np.zeros(4)}), "state must be 5 finite numbers"),
        (lambda env: env.reset(options={"gaol": DEFAULT_GOAL}), r"unknown reset options \['gaol'\]"),
        (lambda env: PushTEnv(disturbance="fog"), "one of background, objects, goal, or null, got 'fog'"),
    ],
)
def test_bad_input_is_named(env: PushTEnv, call, message: str) -> None:
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        call(env)


def test_a_missing_system_library_is_named_with_its_remedy(tmp_path: Path) -> None:
    fault = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({fault!r})")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    command = [sys.executable, "-c", "import unified_video_action.env.pusht.env"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "libGL.so.1 is missing; install it with: sudo apt-get install -y libgl1" in result.stderr.splitlines()[-1]
    assert "apt-file search libodd.so.3" in missing_library_message("libodd.so.3: cannot open shared object file: x")
    assert missing_library_message("No module named 'cv2'") is None
