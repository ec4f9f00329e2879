"""An evaluation that two processes share; run as a script, with an output folder, this is one of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.env_runner import toy
from tests.env_runner.toy_policy import ToyPolicy, ToySession
from unified_video_action.env_runner import distributed
from unified_video_action.env_runner import runner as runner_module


def evaluate(output: Path) -> None:
    runner_module.PolicySession = ToySession
    runner = runner_module.EnvRunner(
        toy.ToyEnv, n_episodes=5, start_seed=9, n_envs=2, max_steps=30, metrics=["coverage"]
    )
    with distributed.process_group():
        metrics = runner.run(ToyPolicy(), output, films=2, progress=False)
        rank = distributed.rank_and_size()[0]
    (output.parent / f"{output.name}_{rank}.txt").write_text(repr(sorted(metrics.items())))


def test_two_processes_find_what_one_finds_and_one_of_them_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The episode of seed 13 crashes, in whichever process."""
    monkeypatch.setattr(runner_module, "PolicySession", runner_module.PolicySession)  # put back
    evaluate(tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1",
                   "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    ended = subprocess.run(
        [*launcher, __file__, str(tmp_path / "two")], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["metrics"] == two["metrics"] and one["metrics"]["crashed"] == 1
    assert [episode["seed"] for episode in two["episodes"]] == [9, 10, 11, 12, 13]
    for mine, theirs in zip(one["episodes"], two["episodes"]):
        assert {**mine, "crashed": bool(mine["crashed"])} == {**theirs, "crashed": bool(theirs["crashed"])}
    metrics = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
    assert metrics.keys() == {"one_0.txt", "two_0.txt", "two_1.txt"} and len(set(metrics.values())) == 1
    videos = [sorted(path.name for path in (tmp_path / name / "films").iterdir()) for name in ("one", "two")]
    assert videos[0] == videos[1] and len(videos[0]) == 2


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]))
