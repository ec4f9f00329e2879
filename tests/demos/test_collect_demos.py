"""Collectors and scripts/collect_demos.py as a user runs it: what it writes can be trained on, and bad calls die."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.loading import load_script
from unified_video_action.dataset.formats.zarr import ReplayBuffer
from unified_video_action.demos.collecting import Attempt, collect
from unified_video_action.demos.pusht import Collector as PushTCollector
from unified_video_action.demos.pusht import ScriptedExpert
from unified_video_action.env.pusht.env import DEFAULT_GOAL, PushTEnv, render_states
from unified_video_action.env.pusht.geometry import random_goal
from unified_video_action.env.pusht.table import Table

NEEDS_PYBULLET = pytest.mark.skipif(find_spec("pybullet") is None, reason="pybullet is not installed: make sims")


@pytest.fixture(scope="module")
def script():
    return load_script("collect_demos")


@pytest.fixture(scope="module")
def archive(script, tmp_path_factory) -> Path:
    """Two demonstrations collected by one process."""
    output = tmp_path_factory.mktemp("demos") / "new" / "demos.zarr.zip"
    script.main(["--task", "pusht", "-n", "2", "--output", str(output), "--goal", "random", "--workers", "1"])
    return output


def test_the_archive_is_in_the_published_format_and_its_actions_succeed(archive: Path) -> None:
    buffer = ReplayBuffer(archive, images=("img",), vectors=("action", "state"))
    assert buffer.n_episodes == 2 and len(buffer) == len(buffer.vectors["action"])
    with zarr.storage.ZipStore(archive, mode="r") as store:
        root = zarr.open_group(store, mode="r")
        assert root.metadata.zarr_format == 2
        assert root["data/img"].dtype == np.uint8 and root["data/img"].shape == (len(buffer), 96, 96, 3)
        assert root["data/action"].dtype == root["data/state"].dtype == np.float32
        goals, rows = root["meta/goal"][:], slice(0, buffer.episode_ends[0])
        np.testing.assert_array_equal(root["data/img"][:5], buffer.frames("img", np.arange(5)))
        frames = render_states(root["data/state"][rows], goals[0])
        assert np.abs(root["data/img"][rows].astype(int) - frames).mean() < 0.05  # states are stored as float32
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]  # nothing partial left behind
    for start, end, goal in zip(buffer.episode_starts, buffer.episode_ends, goals):
        env = PushTEnv(goal=goal, observe_image=False)
        env.reset(options={"state": buffer.vectors["state"][start]})
        coverage = [env.step(action)[-1]["coverage"] for action in buffer.vectors["action"][start:end]]
        assert coverage[-1] > 0.94  # 0.95, but for the rounding of the first state


def test_the_result_does_not_depend_on_the_number_of_processes(script, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "again.zarr.zip"
    script.main(["--task", "pusht", "-n", "2", "--output", str(output), "--goal", "random", "--workers", "2"])
    assert output.read_bytes() == archive.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--task": "chess"}, "no scripted expert for task 'chess'; there are experts for: "),
        ({"--output": None}, "give either --output or --measure"),
        ({"--output": "taken.zarr"}, "exists already; choose another --output"),
        pytest.param({"--task": "block_push", "--image-size": "95"}, "image_size must be the", marks=NEEDS_PYBULLET),
    ],
)
def test_bad_calls_are_refused(script, tmp_path: Path, capsys, monkeypatch, changes: dict, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.zarr").touch()
    options = {"--task": "pusht", "-n": "1", "--output": "demos.zarr", **changes}
    with pytest.raises(SystemExit):
        script.main([word for pair in options.items() if pair[1] is not None for word in pair])
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken.zarr"] and not Path("taken.zarr").read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, None])
def test_an_interrupted_run_and_an_expert_that_always_fails_leave_nothing(tmp_path: Path, error) -> None:
    class Failing(PushTCollector):
        def __call__(self, attempt: int) -> Attempt:
            if error is not None:
                raise error
            return Attempt(success=False)

    with pytest.raises(error or ValueError, match=None if error else "succeeded in only 0 of 41 attempts"):
        collect(Failing(), "pusht", 1, tmp_path / "demos.zarr", workers=1)
    assert not list(tmp_path.iterdir())


def test_an_expert_that_seldom_succeeds_may_go_on() -> None:
    class Seldom(PushTCollector):
        def __call__(self, attempt: int) -> Attempt:
            played.append(attempt)
            return Attempt(success=attempt % 10 == 9)

    played: list[int] = []
    collect(Seldom(), "pusht", 30, None, workers=1)
    assert played == list(range(300))


def test_a_disturbance_is_done_and_recorded_apart() -> None:
    attempt = PushTCollector(seed=3, action_noise=0.0, mistakes=0.0, disturbance=6.0)(0)
    assert attempt.success
    state, action, executed = (attempt.episode[0][name] for name in ("state", "action", "executed"))
    env = PushTEnv(observe_image=False)
    apart = []
    for actions in (action, executed):
        env.reset(options={"state": state[0]})
        replayed = np.array([env.step(each)[-1]["state"] for each in actions[:20]])
        apart.append(np.abs(replayed[:, :2] - state[1:21, :2]).max())
    assert 1 < apart[0] < 60, "what was recorded is what was done, or has nothing to do with it"
    assert apart[1] < 1e-3, "what was executed does not lead where the agent went"


def succeeds(seed: int, goal=DEFAULT_GOAL) -> bool:
    env, expert = PushTEnv(goal=goal, observe_image=False), ScriptedExpert(goal, seed)
    _, info = env.reset(seed=seed)
    for _ in range(300):
        info = env.step(expert.act(info["state"]))[-1]
        if info["is_success"]:
            break
    return info["is_success"]


def test_the_copy_of_the_table_moves_as_the_environment() -> None:
    env, table = PushTEnv(observe_image=False), Table()
    agent, pose = (100.0, 100.0), (250.0, 250.0, 0.5)
    env.reset(options={"state": [*agent, *pose]})
    table.place(agent, pose)
    for action in np.repeat(np.random.default_rng(0).uniform(150, 350, (12, 2)), 5, axis=0):
        state = env.step(action)[-1]["state"]
        table.move(action)
        np.testing.assert_allclose([*table.agent, *table.pose[:2]], state[:4], atol=1e-9)
    assert np.abs(state[2:4] - pose[:2]).max() > 20  # the T was pushed


def test_the_expert_succeeds_also_with_other_goals() -> None:
    assert all(succeeds(seed) for seed in (0, 14, 53, 100000))
    assert all(succeeds(seed, random_goal(np.random.default_rng(seed))) for seed in range(3))
