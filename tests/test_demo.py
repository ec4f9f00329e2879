"""scripts/demo.py: what comes first, how long it trains, and the whole way at a tiny size."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The script's functions, with every command replaced by one that fails."""
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess(args, 1))
    return runpy.run_path(str(SCRIPT))


def test_a_missing_library_ends_the_demo(demo: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="needs what is named above"):
        demo["main"]([])


def test_the_shipped_policy_comes_first(
    demo: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commands = []
    monkeypatch.setattr(
        subprocess, "run", lambda words, **kwargs: commands.append(words) or subprocess.CompletedProcess(words, 0)
    )
    with caplog.at_level("INFO"):
        demo["show_shipped"](tmp_path / "policy", tmp_path / "out", tiny=False)
        assert not commands and "No policy is shipped" in caplog.text
        (tmp_path / "policy").mkdir()
        intervals = {"mean_score": {"low": 0.75, "high": 0.85}, "success_rate": {"low": 0.28, "high": 0.36}}
        figures = {"mean_score": 0.8, "success_rate": 0.32, "episodes": 500, "intervals": intervals}
        (tmp_path / "policy" / "metrics.json").write_text(json.dumps(figures))
        demo["show_shipped"](tmp_path / "policy", tmp_path / "out", tiny=False)
    assert "scored 0.80 (95 %: 0.75 to 0.85) over 500 episodes and succeeded in 32 % (28 to 36)" in caplog.text
    ((_, script, *words),) = commands
    assert script == "eval_sim.py" and words[:2] == ["--checkpoint", str(tmp_path / "policy")]


@pytest.mark.parametrize("arguments", [["--episodes", "0"], ["--train-minutes", "0"], ["--scripted", "-1"]])
def test_bad_options_are_refused(demo: dict[str, Any], arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo["main"](arguments)


def test_training_gets_what_is_left_of_the_time(demo: dict[str, Any]) -> None:
    def minutes(*arguments: str) -> float:
        return demo["training_minutes"](demo["parse_arguments"](list(arguments)), spent=3.0)

    assert minutes("--minutes", "10") == 5.0  # 2 of it to evaluate
    assert minutes("--minutes", "4") == 2.0
    assert minutes("--minutes", "10", "--train-minutes", "9") == 9.0


def test_the_whole_way_at_a_tiny_size(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "UVA_DATA_DIR"}
    output = tmp_path / "run"
    options = ["--tiny", "--scripted-only", "--data", tmp_path / "data", "--output", output]
    result = subprocess.run(
        [sys.executable, SCRIPT, *options], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for command in ("collect_demos.py", "train.py", "eval_sim.py"):
        assert command in result.stdout
    report = output / "evaluation" / "stored" / "report.html"
    assert str(report) in result.stdout.splitlines()[-1]
    page = report.read_text()
    assert "<video" in page and "train/loss" in page and "plan that it then executed" in page
    results = json.loads((report.parent / "results.json").read_text())
    assert [episode["crashed"] for episode in results["episodes"]] == [None, None]
    figures = json.loads((output / "result" / "metrics.json").read_text())
    assert figures["episodes"] == 2 and figures["mean_score"] == results["metrics"]["mean_score"]
    assert "No policy is shipped" in result.stdout or (output / "shipped" / "report.html").is_file()
    assert (output / "metrics.jsonl").read_text().count("\n") >= 2
    assert list((tmp_path / "data" / "pusht").glob("scripted_4.zarr.zip"))
