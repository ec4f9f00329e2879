"""scripts/demo.py: where demonstrations come from, and the whole way at a tiny size."""

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
    monkeypatch.delenv("UVA_DATA_DIR", raising=False)
    return runpy.run_path(str(SCRIPT))


def archive_in(folder: Path) -> Path:
    path = folder / "pusht" / "pusht.zip"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_the_data_folder_comes_first(demo: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    downloaded = archive_in(tmp_path / "downloaded")
    assert demo["human_demonstrations"](tmp_path / "downloaded") == downloaded
    mine = archive_in(tmp_path / "mine")
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path / "mine"))
    assert demo["human_demonstrations"](tmp_path / "downloaded") == mine
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path / "empty"))
    assert demo["human_demonstrations"](tmp_path / "downloaded") == downloaded


def test_without_a_network_it_says_what_it_learns_from(
    demo: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert demo["human_demonstrations"](tmp_path) is None
    assert "download_data.py pusht" in caplog.text
    assert "scripted ones alone" in caplog.text


def test_a_failing_step_ends_the_demo(demo: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"collect_demos\.py failed"):
        demo["scripted_demonstrations"](tmp_path, 3)


def test_a_missing_library_ends_the_demo(demo: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="needs what is named above"):
        demo["main"]([])


@pytest.mark.parametrize("arguments", [["--episodes", "0"], ["--train-minutes", "0"], ["--scripted", "-1"]])
def test_bad_options_are_refused(demo: dict[str, Any], arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo["main"](arguments)


def test_training_gets_what_is_left_of_the_time(demo: dict[str, Any]) -> None:
    def minutes(*arguments: str) -> float:
        return demo["training_minutes"](demo["parse_arguments"](list(arguments)), spent=3.0)

    assert minutes("--minutes", "10") == 5.5  # 1.5 of it to evaluate
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
    report = output / "evaluation" / "report.html"
    assert str(report) in result.stdout.splitlines()[-1]
    assert "<video" in report.read_text()
    results = json.loads((report.parent / "results.json").read_text())
    assert [episode["crashed"] for episode in results["episodes"]] == [None, None]
    assert (output / "checkpoints" / "latest" / "ema.safetensors").is_file()
    assert (output / "metrics.jsonl").read_text().count("\n") >= 2
    assert list((tmp_path / "data" / "pusht").glob("scripted_4.zarr.zip"))
