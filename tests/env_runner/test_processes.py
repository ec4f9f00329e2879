"""An evaluation that two processes share."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.env_runner import shared
from unified_video_action.env_runner import processes

ROOT = Path(__file__).parents[2]


def test_two_processes_find_what_one_finds_and_one_of_them_writes(tmp_path: Path, monkeypatch):
    """The episode of seed 13 crashes, in whichever process."""
    monkeypatch.setattr(sys, "argv", ["shared.py", str(tmp_path / "one")])
    monkeypatch.setattr(shared.runner_module, "PolicySession", shared.runner_module.PolicySession)  # put back
    shared.main()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [*launcher, shared.__file__, str(tmp_path / "two")],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["metrics"] == two["metrics"] and one["metrics"]["crashed"] == 1
    assert [episode["seed"] for episode in two["episodes"]] == [9, 10, 11, 12, 13]
    for mine, theirs in zip(one["episodes"], two["episodes"]):
        assert {**mine, "crashed": bool(mine["crashed"])} == {**theirs, "crashed": bool(theirs["crashed"])}
    told = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
    assert told.keys() == {"one_0.txt", "two_0.txt", "two_1.txt"} and len(set(told.values())) == 1
    films = [sorted(path.name for path in (tmp_path / name / "films").iterdir()) for name in ("one", "two")]
    assert films[0] == films[1] and len(films[0]) == 2


def test_a_process_alone_is_the_first_and_only_one():
    with processes.joined() as first:
        assert first and processes.place() == (0, 1) and processes.gather([1, 2]) == [1, 2]
