"""scripts/collect_demos.py as a user runs it: what it writes can be trained on, and bad calls die clearly."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.loading import load_script
from unified_video_action.dataset.formats.zarr import ReplayBuffer
from unified_video_action.demos.collecting import Attempt, collect
from unified_video_action.demos.pusht import Collector
from unified_video_action.env.pusht.env import PushTEnv
from unified_video_action.env.pusht.renderer import render_states


@pytest.fixture(scope="module")
def script():
    return load_script("collect_demos")


@pytest.fixture(scope="module")
def archive(script, tmp_path_factory) -> Path:
    """Three demonstrations collected by one process."""
    output = tmp_path_factory.mktemp("demos") / "new" / "demos.zarr.zip"
    script.main(["--task", "pusht", "-n", "3", "--output", str(output), "--goal", "random", "--workers", "1"])
    return output


def test_the_archive_is_in_the_published_format(archive: Path) -> None:
    buffer = ReplayBuffer(archive, images=("img",), vectors=("action", "state"))
    assert buffer.n_episodes == 3 and len(buffer) == len(buffer.vectors["action"])
    with zarr.storage.ZipStore(archive, mode="r") as store:
        root = zarr.open_group(store, mode="r")
        assert root.metadata.zarr_format == 2
        assert root["data/img"].dtype == np.uint8 and root["data/img"].shape == (len(buffer), 96, 96, 3)
        assert root["data/action"].dtype == root["data/state"].dtype == np.float32
        goals = root["meta/goal"][:]
        rows = slice(0, buffer.episode_ends[0])
        np.testing.assert_array_equal(root["data/img"][:5], buffer.frames("img", np.arange(5)))
        frames = render_states(root["data/state"][rows], goals[0])
        assert np.abs(root["data/img"][rows].astype(int) - frames).mean() < 0.05  # states are stored as float32
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]  # nothing partial left behind


def test_stored_actions_lead_to_success(archive: Path) -> None:
    buffer = ReplayBuffer(archive, images=(), vectors=("action", "state"))
    with zarr.storage.ZipStore(archive, mode="r") as store:
        goals = zarr.open_group(store, mode="r")["meta/goal"][:]
    for start, end, goal in zip(buffer.episode_starts, buffer.episode_ends, goals):
        env = PushTEnv(goal=goal, observe_image=False)
        env.reset(options={"state": buffer.vectors["state"][start]})
        coverage = [env.step(action)[-1]["coverage"] for action in buffer.vectors["action"][start:end]]
        assert coverage[-1] > 0.94  # 0.95, but for the rounding of the first state


def test_the_result_does_not_depend_on_the_number_of_processes(script, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "again.zarr.zip"
    script.main(["--task", "pusht", "-n", "3", "--output", str(output), "--goal", "random", "--workers", "2"])
    assert output.read_bytes() == archive.read_bytes()


def test_a_folder_holds_the_same(script, tmp_path: Path) -> None:
    output = tmp_path / "demos.zarr"
    options = ["--seed", "1", "--workers", "1", "--image-size", "48", "--mistakes", "0"]
    script.main(["--task", "pusht", "-n", "1", "--output", str(output), *options])
    root = zarr.open_group(output, mode="r")
    assert root["data/img"].shape[1:] == (48, 48, 3)
    assert root["meta/episode_ends"][:].tolist() == [root["data/action"].shape[0]]
    assert root.attrs["seed"] == 1 and root.attrs["mistakes"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--task": "chess"}, "no scripted expert for task 'chess'; there are experts for: "),
        ({"--goal": "moon"}, "goal must be one of fixed, random, got 'moon'"),
        ({"-n": "0"}, "--episodes and --workers must be at least 1"),
        ({"--output": "demos.npz"}, "--output must end in .zarr or .zip, got demos.npz"),
        ({"--mistakes": "1.5"}, "mistakes must be below 1"),
        ({"--task": "pusht_m", "--goal": "fixed"}, "unrecognized arguments: --goal fixed"),
    ],
)
def test_bad_calls_are_refused(script, tmp_path: Path, capsys, monkeypatch, changes: dict, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"--task": "pusht", "-n": "1", "--output": "demos.zarr", **changes}
    with pytest.raises(SystemExit):
        script.main([word for pair in options.items() for word in pair])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_task_is_required(script, capsys) -> None:
    with pytest.raises(SystemExit):
        script.main(["--output", "demos.zarr"])
    assert "the following arguments are required: --task" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main(["--task", "pusht", "-n", "1"])
    assert "give either --output or --measure" in capsys.readouterr().err


def test_options_are_the_fields_of_the_tasks_collector(script, capsys) -> None:
    for task, has_goal in (("pusht", True), ("pusht_m", False)):
        with pytest.raises(SystemExit):
            script.main(["--task", task, "--help"])
        text = capsys.readouterr().out
        assert "--action-noise" in text and ("--goal" in text) is has_goal


def test_an_existing_output_is_left_alone(script, archive: Path, capsys) -> None:
    before = archive.read_bytes()
    with pytest.raises(SystemExit):
        script.main(["--task", "pusht", "-n", "1", "--output", str(archive)])
    assert "exists already; choose another --output" in capsys.readouterr().err
    assert archive.read_bytes() == before


def test_an_interrupted_run_and_an_expert_that_always_fails_leave_nothing(tmp_path: Path) -> None:
    class Interrupted(Collector):
        def __call__(self, attempt: int) -> Attempt:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(Interrupted(), "pusht", 2, tmp_path / "demos.zarr", workers=1)

    class Failing(Collector):
        def __call__(self, attempt: int) -> Attempt:
            return Attempt(success=False)

    with pytest.raises(RuntimeError, match="succeeded in only 0 of 22 attempts"):
        collect(Failing(), "pusht", 1, tmp_path / "demos.zarr", workers=1)
    assert not list(tmp_path.iterdir())


def test_measuring_keeps_nothing(script, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    script.main(["--task", "pusht", "-n", "1", "--measure", "--workers", "1"])
    assert "success 1 of 1 attempts (100.0 %), mean steps" in caplog.text and not list(tmp_path.iterdir())
