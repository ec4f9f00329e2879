"""EnvRunner: what it returns, what it writes, and what it leaves alone."""

import json
import logging
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.env_runner import toy
from tests.env_runner.toy_policy import ToyPolicy, ToySession
from unified_video_action.env_runner import runner as runner_module
from unified_video_action.env_runner.preparation import build_runner
from unified_video_action.env_runner.results import Journal
from unified_video_action.env_runner.rollout import Episode
from unified_video_action.env_runner.runner import EnvRunner
from unified_video_action.instantiate import instantiate


@pytest.fixture(autouse=True)
def toy_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "PolicySession", ToySession)


def make(**options) -> EnvRunner:
    defaults = {"n_episodes": 4, "start_seed": 10, "n_envs": 2, "max_steps": 30, "metrics": ["coverage"]}
    return EnvRunner(toy.ToyEnv, **{**defaults, **options})


def test_without_an_output_folder_only_metrics_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    policy = ToyPolicy().train()
    metrics = make(n_episodes=3).run(policy, progress=False)
    assert (metrics["episodes"], metrics["crashed"]) == (3, 0)
    assert metrics["mean_max_coverage"] == pytest.approx(metrics["mean_score"] / 2)
    assert metrics["mean_score_low"] <= metrics["mean_score"] <= metrics["mean_score_high"]
    assert policy.training, "the mode is put back"
    assert list(tmp_path.iterdir()) == []


def test_everything_is_written_and_a_crash_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    output = tmp_path / "deep" / "out"
    with caplog.at_level(logging.WARNING):
        metrics = make().run(ToyPolicy(), output, films=2, title="Toy", config={"seed": 1}, progress=False)
    assert (metrics["episodes"], metrics["crashed"]) == (3, 1)
    assert "seed 13 crashed: environment process ended by exit status 3" in caplog.text

    results = json.loads((output / "results.json").read_text())
    assert results["metrics"] == metrics
    assert results["config"] == {"seed": 1}
    assert [episode["seed"] for episode in results["episodes"]] == [10, 11, 12, toy.EXITS]
    assert [bool(episode["crashed"]) for episode in results["episodes"]] == [False, False, False, True]

    films = sorted(path.name for path in (output / "films").iterdir())
    assert len(films) == 2 and films[0].startswith("best_seed_") and films[1].startswith("worst_seed_")
    page = (output / "report.html").read_text()
    assert page.count("<video") == 2 and "exit status 3" in page


def test_the_result_does_not_depend_on_the_number_of_environments(tmp_path: Path):
    one = make(n_episodes=3, n_envs=1).run(ToyPolicy(), progress=False)
    assert make(n_episodes=3, n_envs=3).run(ToyPolicy(), tmp_path, films=1, progress=False) == one


def test_a_policy_without_imagination_is_filmed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(ToySession, "imagine")
    make(n_episodes=1).run(ToyPolicy(), tmp_path, films=3, imagine=False, progress=False)
    assert [path.name for path in (tmp_path / "films").iterdir()] == ["best_seed_10.mp4"]


def test_no_run_without_a_single_episode():
    with pytest.raises(RuntimeError, match="no episode out of 1 was completed; the first: ArithmeticError"):
        make(n_episodes=1, start_seed=toy.RAISES).run(ToyPolicy(), progress=False)


@pytest.mark.parametrize("name", ["n_episodes", "n_envs", "max_steps", "action_steps"])
def test_counts_below_one_are_refused(name: str):
    with pytest.raises(ValueError, match=f"EnvRunner.{name} must be at least 1, got 0"):
        make(**{name: 0})


def test_it_is_built_from_configuration():
    node = OmegaConf.create(
        {
            "env": {"_target_": "unified_video_action.env.pusht.env.PushTEnv", "image_size": 32},
            "env_runner": {
                "_target_": "unified_video_action.env_runner.runner.EnvRunner",
                "n_episodes": 2,
                "metrics": ["coverage"],
            },
        }
    )
    runner = instantiate(node.env_runner, EnvRunner, "task.env_runner", env_config=node.env)
    assert list(runner.seeds) == [100000, 100001]
    assert runner.env_config == {"_target_": "unified_video_action.env.pusht.env.PushTEnv", "image_size": 32}
    assert 1 <= runner.n_envs <= 2
    with pytest.raises(ValueError, match="env_runner.n_episode: EnvRunner has no such field"):
        instantiate({**node.env_runner, "n_episode": 3}, EnvRunner, "env_runner", env_config=node.env)


def test_films_get_the_reader_of_the_task():
    runner = {"_target_": "unified_video_action.env_runner.runner.EnvRunner"}
    task = {"env": {"_target_": "unified_video_action.env.pusht.env.PushTEnv"}, "env_runner": runner, "reader": None}
    reader = {"_target_": "unified_video_action.env.pusht.reader.PushTReader"}
    assert build_runner({"task": task}).reader is None
    assert build_runner({"task": task | {"reader": reader}}).reader.unit == "px"


def test_an_interrupted_evaluation_goes_on_without_its_finished_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = make(n_episodes=3).run(ToyPolicy(), tmp_path / "whole", films=3, progress=False)

    class Interrupted(ToySession):
        def reset(self, slot=0, seed=0, text=None):
            if seed == 12:
                raise KeyboardInterrupt
            super().reset(slot, seed, text)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner_module, "PolicySession", Interrupted)
        runner = make(n_episodes=3, n_envs=1)
        runner.run(ToyPolicy(), tmp_path / "cut", progress=False, facts={"digest": "a"}, journal=True)
    assert not (tmp_path / "cut" / "results.json").exists()
    with (tmp_path / "cut" / "journal.0.jsonl").open("a") as file:
        file.write('{"seed": 12, "ste')  # the machine went down while it wrote

    with pytest.raises(ValueError, match="digest was 'a', is 'b'"):
        make(n_episodes=3).run(ToyPolicy(), tmp_path / "cut", progress=False, facts={"digest": "b"}, resume=True)

    rolled: list[int] = []

    class Counted(ToySession):
        def reset(self, slot=0, seed=0, text=None):
            rolled.append(seed)
            super().reset(slot, seed, text)

    monkeypatch.setattr(runner_module, "PolicySession", Counted)
    runner = make(n_episodes=3, n_envs=1)
    options = {"films": 0, "progress": False, "facts": {"digest": "a"}, "journal": True, "resume": True}
    metrics = runner.run(ToyPolicy(), tmp_path / "cut", **options)
    assert rolled == [12]
    assert metrics == whole
    names = sorted(path.name for path in (tmp_path / "cut").iterdir())
    assert names == ["report.html", "results.json"], "the journal is gone"


def test_films_of_a_continued_evaluation_show_the_earlier_episodes_too(tmp_path: Path):
    runner = make(n_episodes=3)
    journal = Journal(tmp_path, runner._settings(None))
    results = make(n_episodes=3).run(ToyPolicy(), tmp_path / "whole", films=0, progress=False)
    journal.begin()
    for entry in json.loads((tmp_path / "whole" / "results.json").read_text())["episodes"][:2]:
        maxima = {"coverage": entry["max_coverage"]}
        journal.add(Episode(entry["seed"], entry["steps"], entry["success"], maxima, entry["curve"]))
    metrics = runner.run(ToyPolicy(), tmp_path, films=3, progress=False, resume=True)
    assert metrics["success_rate"] == results["success_rate"]
    assert len(list((tmp_path / "films").iterdir())) == 3


def test_there_must_be_something_to_continue(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no evaluation to continue"):
        make().run(ToyPolicy(), tmp_path, progress=False, resume=True)


def test_an_environment_of_several_tasks_is_reported_by_task(tmp_path: Path):
    runner = EnvRunner(toy.TaskedEnv, n_episodes=3, start_seed=20, n_envs=2, max_steps=30)
    metrics = runner.run(ToyPolicy(), tmp_path, films=0, progress=False)
    assert (metrics["even/episodes"], metrics["odd/episodes"]) == (2, 1)
    rates = metrics["even/success_rate"], metrics["odd/success_rate"]
    assert metrics["mean_task_success_rate"] == pytest.approx(sum(rates) / 2)
    tasks = [episode["task"] for episode in json.loads((tmp_path / "results.json").read_text())["episodes"]]
    assert tasks == ["even", "odd", "even"]
    page = (tmp_path / "report.html").read_text()
    assert "mean of the tasks" in page and "<td>odd</td>" in page


def test_the_session_is_told_the_instruction(monkeypatch: pytest.MonkeyPatch):
    told = {}

    class Listening(ToySession):
        def reset(self, slot=0, seed=0, text=None):
            told[seed] = text
            super().reset(slot, seed, text)

    monkeypatch.setattr(runner_module, "PolicySession", Listening)
    EnvRunner(toy.TaskedEnv, n_episodes=2, start_seed=20, n_envs=1, max_steps=3).run(ToyPolicy(), progress=False)
    assert told == {20: "walk to the even end", 21: "walk to the odd end"}
