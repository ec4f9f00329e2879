"""scripts/demo.py: what comes first, how long it trains, and the whole way at a tiny size."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


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
