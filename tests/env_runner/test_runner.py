"""EnvRunner: what it returns, what it writes, and what it leaves alone."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from tests.env_runner import toy
from tests.env_runner.toy_policy import ToyPolicy, ToySession
from unified_video_action.env_runner import runner as runner_module
from unified_video_action.env_runner.runner import EnvRunner


class LoggedSession(ToySession):
    """Notes the seeds that are begun and their instructions; stops at a seed."""

    begun: dict[int, str | None] = {}
    stops_at: int | None = None

    def reset(self, slot=0, seed=0, text=None):
        if seed == self.stops_at:
            raise KeyboardInterrupt
        self.begun[seed] = text
        super().reset(slot, seed, text)


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> type[LoggedSession]:
    monkeypatch.setattr(LoggedSession, "begun", {})
    monkeypatch.setattr(runner_module, "PolicySession", LoggedSession)
    return LoggedSession


def make(env=toy.ToyEnv, **options) -> EnvRunner:
    defaults = {"n_episodes": 4, "start_seed": 10, "n_envs": 2, "max_steps": 30, "metrics": ["coverage"]}
    return EnvRunner(env, **{**defaults, **options})


def test_without_an_output_folder_only_metrics_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    policy = ToyPolicy().train()
    metrics = make(n_episodes=3, n_envs=1).run(policy, progress=False)
    assert (metrics["episodes"], metrics["crashed"]) == (3, 0)
    assert metrics["mean_max_coverage"] == pytest.approx(metrics["mean_score"] / 2)
    assert metrics["mean_score_low"] <= metrics["mean_score"] <= metrics["mean_score_high"]
    assert policy.training, "the mode is put back"
    assert list(tmp_path.iterdir()) == []
    assert make(n_episodes=3, n_envs=3).run(policy, progress=False) == metrics


def test_everything_is_written_and_a_crash_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Also of a policy that imagines nothing."""
    output = tmp_path / "deep" / "out"
    with caplog.at_level(logging.WARNING):
        metrics = make().run(ToyPolicy(), output, videos=2, title="Toy", config={"seed": 1}, progress=False)
    assert (metrics["episodes"], metrics["crashed"]) == (3, 1)
    alone = make(n_episodes=3, n_envs=1).run(ToyPolicy(), progress=False)
    assert metrics["mean_score"] == alone["mean_score"], "an episode is the same whatever crashes beside it"
    assert "seed 13 crashed: environment process ended by exit status 3" in caplog.text
    results = json.loads((output / "results.json").read_text())
    assert results["metrics"] == metrics and results["config"] == {"seed": 1}
    assert [episode["seed"] for episode in results["episodes"]] == [10, 11, 12, toy.EXITS]
    assert [bool(episode["crashed"]) for episode in results["episodes"]] == [False, False, False, True]
    videos = sorted(path.name for path in (output / "videos").iterdir())
    assert len(videos) == 2 and videos[0].startswith("best_seed_") and videos[1].startswith("worst_seed_")
    page = (output / "report.html").read_text()
    assert page.count("<video") == 2 and "exit status 3" in page
    monkeypatch.delattr(ToySession, "imagine")
    monkeypatch.setattr(ToyPolicy, "imagines", False)
    make(n_episodes=1).run(ToyPolicy(), tmp_path / "alone", videos=3, progress=False)
    assert [path.name for path in (tmp_path / "alone" / "videos").iterdir()] == ["best_seed_10.mp4"]


def test_what_cannot_be_evaluated_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RuntimeError, match="no episode out of 1 was completed; the first: ArithmeticError"):
        make(n_episodes=1, start_seed=toy.RAISES).run(ToyPolicy(), progress=False)
    with pytest.raises(ValueError, match="EnvRunner.n_envs must be at least 1, got 0"):
        make(n_envs=0)
    with pytest.raises(ValueError, match="info has no 'score'; it has is_success"):
        make(toy.ForgetfulEnv, metrics=()).run(ToyPolicy(), progress=False)
    monkeypatch.setattr(LoggedSession, "plan", lambda self, slots: np.full((len(slots), 16, 1), np.nan))
    with pytest.raises(RuntimeError, match="not finite: seed 10, step 0"):
        make(n_episodes=1).run(ToyPolicy(), progress=False)


def test_an_interrupted_evaluation_goes_on_without_its_finished_episodes(
    tmp_path: Path, session: type[LoggedSession], monkeypatch: pytest.MonkeyPatch
):
    cut, facts = tmp_path / "cut", {"digest": "a"}
    whole = make(n_episodes=3).run(ToyPolicy(), tmp_path / "whole", videos=0, progress=False)
    with pytest.raises(FileNotFoundError, match="no evaluation to continue"):
        make(n_episodes=3).run(ToyPolicy(), cut, progress=False, resume=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session, "stops_at", 12)
        make(n_episodes=3, n_envs=1).run(ToyPolicy(), cut, progress=False, facts=facts, journal=True)
    assert not (cut / "results.json").exists()
    with (cut / "journal.0.jsonl").open("a") as file:
        file.write('{"seed": 12, "ste')  # the machine went down while it wrote
    with pytest.raises(ValueError, match="digest was 'a', is 'b'"):
        make(n_episodes=3).run(ToyPolicy(), cut, progress=False, facts={"digest": "b"}, resume=True)

    monkeypatch.setattr(session, "begun", {})
    kept = {path: path.read_bytes() for path in cut.iterdir()}
    options = {"progress": False, "facts": facts, "journal": True, "resume": True}
    assert make(n_episodes=3, n_envs=1).run(ToyPolicy(), cut, videos=0, **options) == whole
    assert list(session.begun) == [12]
    names = sorted(path.name for path in cut.iterdir())
    assert names == ["report.html", "results.json"], "the journal is gone"
    for path, data in kept.items():
        path.write_bytes(data)
    assert make(n_episodes=3).run(ToyPolicy(), cut, videos=3, **options) == whole
    assert len(list((cut / "videos").iterdir())) == 3, "also of the earlier episodes"


def test_an_environment_of_several_tasks_is_reported_by_task(tmp_path: Path, session: type[LoggedSession]):
    runner = make(toy.TaskedEnv, n_episodes=3, start_seed=20, metrics=())
    metrics = runner.run(ToyPolicy(), tmp_path, videos=0, progress=False)
    assert session.begun == {seed: f"walk to the {'odd' if seed % 2 else 'even'} end" for seed in (20, 21, 22)}
    assert (metrics["even/episodes"], metrics["odd/episodes"]) == (2, 1)
    rates = metrics["even/success_rate"], metrics["odd/success_rate"]
    assert metrics["mean_task_success_rate"] == pytest.approx(sum(rates) / 2)
    tasks = [episode["task"] for episode in json.loads((tmp_path / "results.json").read_text())["episodes"]]
    assert tasks == ["even", "odd", "even"]
    page = (tmp_path / "report.html").read_text()
    assert "mean of the tasks" in page and "<td>odd</td>" in page
