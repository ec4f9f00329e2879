"""eval_sim.py on a small untrained checkpoint, in the real simulator; and what it says to mistakes."""

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

import eval_sim
from tests.scripts.conftest import CONFIG as SMALL
from tests.small_run import write_run
from unified_video_action.env_runner import preparation
from unified_video_action.env_runner.results import Journal
from unified_video_action.env_runner.rollout import Episode

CONFIG = {**SMALL, "name": "small", "task": copy.deepcopy(SMALL["task"])}
CONFIG["task"]["shape_meta"]["auxiliary_dim"] = 6
CONFIG["task"]["env_runner"]["max_steps"] = 300
SCORE = "task.planner_score._target_=unified_video_action.env.pusht.score.CoverageScore"
BLOCK_PUSH = "task.env._target_=unified_video_action.env.block_push.env.BlockPushEnv"  # knows no disturbances


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint and a log."""
    run = tmp_path_factory.mktemp("run")
    write_run(run, CONFIG)
    return run


@pytest.fixture
def checkpoint(run_folder: Path) -> Path:
    return run_folder / "checkpoints" / "step_00000010"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["eval_sim.py", *map(str, arguments)])
    eval_sim.main()


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_a_checkpoint_is_evaluated(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    options = ("--n-episodes", 2, "--n-envs", 2, "--seed", 7, "--videos", 1, "--device", "cpu", "--sampler", "ddim3")
    changes = ("task.env_runner.max_steps=20", "task.env.goal=[200,200,0]")
    output = tmp_path / "out"
    with caplog.at_level("INFO"):
        call(monkeypatch, "--checkpoint", checkpoint, *options, "--output", output, "--disturbance", "background",
             "--set", *changes)  # fmt: skip
    assert "mean_score" in caplog.text and "report.html" in caplog.text

    found = results(output)
    assert [(episode["seed"], episode["steps"]) for episode in found["episodes"]] == [(7, 20), (8, 20)]
    assert all(0 <= episode["score"] <= 1 for episode in found["episodes"])
    assert found["metrics"]["episodes"] == 2 and found["metrics"]["crashed"] == 0
    env = found["config"]["task"]["env"]
    assert env["goal"] == [200, 200, 0] and env["disturbance"] == found["facts"]["disturbance"] == "background"
    assert {"torch", "gymnasium", "pymunk"} <= found["versions"].keys()
    page = (output / "report.html").read_text()
    assert all(part in page for part in ("train/loss", "ddim3", "background")) and page.count("<video") == 1
    (video,) = (output / "videos").iterdir()
    with av.open(video) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    table = np.median(shown[80:350, 16:300], axis=(0, 1))  # of the real frame
    assert (255 - table).max() > 40, "the table has another colour"


def test_the_default_output_lies_in_the_run_but_not_beside_a_shipped_checkpoint(
    checkpoint: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ("--n-episodes", 1, "--videos", 0, "--precision", "bf16", "--set", "task.env_runner.max_steps=8")
    call(monkeypatch, "--checkpoint", checkpoint, *options)
    (made,) = (run_folder / "evaluation").iterdir()
    assert made.name.startswith("step_00000010_ema_")
    assert sorted(path.name for path in made.iterdir()) == ["report.html", "results.json"]
    facts = results(made)["facts"]
    assert facts["checkpoint"] == checkpoint.name and facts["sampler"] == "ddim2" and len(facts["digest"]) == 16
    assert facts["precision"] == "bf16"
    shipped = tmp_path / "project" / "checkpoints" / "mine"
    shutil.copytree(checkpoint, shipped)
    (shipped / "metrics.json").write_text("{}")
    assert preparation.run_folder(shipped) == Path("outputs/shipped/mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler", "heun10"], "must be ancestral, ddim, dpm or euler, got 'heun'"),
        (["--weights", "model"], "model.safetensors is missing"),
        (["--set", "task.env_runner.n_episode=3"], "task.env_runner.n_episode: EnvRunner has no such field"),
        (["--set", "training.steps=3"], "--set training.steps=3: expected KEY=VALUE"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--output", "."], "exists already; choose another with --output"),
        (["--record-dataset", "."], ". exists already; choose another name"),
        (["--disturbance", "goal", "--set", BLOCK_PUSH], "task.env.disturbance: BlockPushEnv has no such field"),
        (["--planner", "4"], "--planner 4: the configuration names no score; set task.planner_score"),
        (["--planner-model", "simulator"], "no planner is configured; say how many plans with --planner K"),
    ],
)
def test_mistakes_are_named(
    checkpoint: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(checkpoint)
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, "--checkpoint", checkpoint, "--output", tmp_path / "new", *arguments)
    assert message in str(stopped.value)


def test_a_planner_chooses(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = ("--checkpoint", checkpoint, "--n-episodes", 1, "--seed", 100007)
    settings = ("--set", "task.env_runner.max_steps=16", SCORE)
    found = {}
    for name, choice in {
        "plain": ("--planner", 1, "--videos", 0),
        "policy": ("--planner", 3, "--videos", 1),
        "simulator": ("--planner", 3, "--videos", 1, "--planner-model", "simulator"),
    }.items():
        call(monkeypatch, *options, *choice, "--output", tmp_path / name, *settings)
        found[name] = results(tmp_path / name)
    for name in ("policy", "simulator"):
        assert found[name]["facts"]["planner"].startswith("best of 3 by CoverageScore(at=-1, shaping=")
        assert found[name]["facts"]["planner model"] == name and "planner_score" in found[name]["config"]["task"]
        assert found[name]["plan_ms"]["median"] > 0 and found[name]["plan_ms"]["environments"] == 1
        page = (tmp_path / name / "report.html").read_text()
        assert "best of 3 by" in page and "one plan" in page
    curves = [each["episodes"][0]["curve"] for each in found.values()]
    assert curves[0] != curves[1] and curves[0] != curves[2]


def test_a_seed_gives_the_same_score_whatever_runs_beside_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In one process with two simulators, and in two processes with one each."""
    options = ["--checkpoint", checkpoint, "--n-episodes", 2, "--videos", 1, "--device", "cpu", "--seed", 100007,
               "--set", "task.env_runner.max_steps=16"]  # fmt: skip
    call(monkeypatch, *options, "--n-envs", 2, "--output", tmp_path / "one")
    command = [sys.executable, eval_sim.__file__, *map(str, options), "--n-envs", "1", "--output"]
    with socket.create_server(("localhost", 0)) as server:
        rendezvous = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(server.getsockname()[1]), "WORLD_SIZE": "2"}
    environments = [
        {**os.environ, **rendezvous, "OMP_NUM_THREADS": "1", "RANK": rank} for rank in ("0", "1")
    ]  # as torchrun
    folders = [tmp_path / "two", tmp_path / "other"]  # as by a clock that goes on between them
    started = [
        subprocess.Popen([*command, folder], env=each, stderr=subprocess.PIPE, text=True)
        for folder, each in zip(folders, environments, strict=True)
    ]
    errors = [process.communicate(timeout=250)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert [text.count("mean_score ") for text in errors] == [1, 0]  # the first process alone logs
    found = [results(tmp_path / name)["episodes"] for name in ("one", "two")]
    assert [episode["seed"] for episode in found[1]] == [100007, 100008]
    curves = [[episode["curve"] for episode in episodes] for episodes in found]
    np.testing.assert_allclose(*curves, atol=1e-3)
    assert np.max(curves) > 0.3 and len(list((tmp_path / "two" / "videos").iterdir())) == 1
    assert not folders[1].exists()  # the first process's is everybody's


def test_an_interrupted_evaluation_is_continued(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = ["--checkpoint", checkpoint, "--set", "task.env_runner.max_steps=8", "--videos", "0", "--n-envs", "1"]
    options += ["--n-episodes", "2", "--output"]
    call(monkeypatch, *options, tmp_path / "whole")
    add = Journal.add

    def interrupted(journal: Journal, episode: Episode) -> None:
        add(journal, episode)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(Journal, "add", interrupted)
        call(patch, *options, tmp_path / "cut")
    with pytest.raises(SystemExit, match="sampler was 'ddim2', is 'ddim3'"):
        call(monkeypatch, *options, tmp_path / "cut", "--resume", "--sampler", "ddim3")
    call(monkeypatch, *options, tmp_path / "cut", "--resume")
    whole, cut = results(tmp_path / "whole"), results(tmp_path / "cut")
    assert cut["episodes"] == whole["episodes"] and cut["metrics"] == whole["metrics"]
