"""scripts/evaluate_video.py on a model of a few thousand weights and simulated episodes."""

import json
from pathlib import Path

import pytest

from tests.evaluation.worlds import write_pushes
from tests.loading import load_script
from tests.scripts.test_evaluate_world_model import write_checkpoint

script = load_script("evaluate_video")


def test_rows_are_as_far_from_the_recorded_clips_as_they_should_be(tmp_path: Path, capsys) -> None:
    store = write_pushes(tmp_path / "pushes.zarr")
    checkpoint = write_checkpoint(tmp_path / "run", store, {"policy": 1.0, "video": 1.0})
    words = ["--checkpoint", str(checkpoint), "--clips", "6", "--rows", "4", "--device", "cpu", "--sampler", "ddim3"]
    script.main([*words, "--iterations", "1", "2", "--output", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "video.json").read_text())
    assert (found["clips"], found["episodes"]) == (6, 3)
    rows = {name: distances["codec features"] for name, distances in found["rows"].items()}
    assert set(rows) == {"codec", "still", "1 iterations", "2 iterations"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows.values())
    assert rows["codec"]["value"] < rows["still"]["value"] < rows["1 iterations"]["value"]  # an untrained model's
    with pytest.raises(SystemExit):
        script.main([*words, "--output", str(tmp_path / "out"), "--i3d", "absent.pt"])
    assert "absent.pt: no I3D weights there" in capsys.readouterr().err
