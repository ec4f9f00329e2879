"""scripts/demo.py: what comes first, how long it trains, and the whole way at a tiny size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loading import load_script

ROOT = Path(__file__).resolve().parents[1]
demo = load_script("demo")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was run; every command fails."""
    made: list[list[str]] = []

    def failing(words: list, **kwargs: object) -> subprocess.CompletedProcess:
        made.append(list(map(str, words[1:])))
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr(subprocess, "run", failing)
    return made


def test_a_missing_library_ends_the_demo_and_bad_options_are_refused(commands: list) -> None:
    with pytest.raises(SystemExit, match="needs what is named above"):
        demo.main([])
    for arguments in (["--episodes", "0"], ["--train-minutes", "0"]):
        with pytest.raises(SystemExit, match="2"):
            demo.main(arguments)
    assert len(commands) == 1


def test_the_whole_way_at_a_tiny_size(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "UVA_DATA_DIR"}
    output, data = tmp_path / "run", tmp_path / "data"
    options = ["--tiny", "--scripted-only", "--data", data, "--output", output]
    command = [sys.executable, ROOT / "scripts" / "demo.py", *options]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    for script in ("collect_demos.py", "train.py", "eval_sim.py"):
        assert script in result.stdout
    report = output / "evaluation" / "stored" / "report.html"
    page = report.read_text()
    assert str(report) in result.stdout.splitlines()[-1]
    assert "<video" in page and "train/loss" in page and "plan that it executed" in page
    results = json.loads((report.parent / "results.json").read_text())
    assert [episode["crashed"] for episode in results["episodes"]] == [None, None]
    figures = json.loads((output / "result" / "metrics.json").read_text())
    assert figures["episodes"] == 2 and figures["mean_score"] == results["metrics"]["mean_score"]
    assert (output / "shipped" / "report.html").is_file()
    assert list((data / "pusht").glob("scripted_4.zarr.zip"))
