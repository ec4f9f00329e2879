"""scripts/evaluate_world_model.py on a model of a few thousand weights and simulated episodes."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.worlds import write_pushes
from tests.loading import load_script
from tests.scripts.conftest import CONFIG
from tests.small_run import write_run

READER = {"_target_": "unified_video_action.env.pusht.reader.PushTReader"}
script = load_script("evaluate_world_model")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pushes(tmp_path_factory.mktemp("pushes") / "pushes.zarr")


def write_checkpoint(folder: Path, store: Path, quotas: dict[str, float], **task: Any) -> Path:
    config = copy.deepcopy(CONFIG)
    config["task"]["dataset"] |= {"paths": [{"path": str(store)}, {"path": "/elsewhere/made.zip"}], "val_ratio": 0.5}
    config["task"] |= task
    config["training"] |= {"mode_mix": {"quotas": quotas}}
    return write_run(folder, config)


def test_json_table_and_page(store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    every = dict.fromkeys(("policy", "video", "forward_dynamics", "inverse_dynamics", "policy_and_video"), 1.0)
    checkpoint = write_checkpoint(tmp_path / "run", store, every, reader=READER)
    with caplog.at_level("INFO"):
        script.main(
            ["--checkpoint", str(checkpoint), "--windows", "6", "--samples", "2", "--iterations", "2", "--rows", "4"]
            + ["--sampler", "ddim3", "--device", "cpu", "--output", str(tmp_path / "out")]
        )
    found = json.loads((tmp_path / "out" / "world_model.json").read_text())
    assert (found["windows"], found["episodes"], found["not_trained"]) == (6, 3, [])
    assert found["settings"]["iterations"] == 2 and found["settings"]["video_sampler"] == "ddim3"
    assert {"codec", "still", "video", "forward_dynamics_other"} <= found["frames"].keys()
    assert len(found["frames"]["still"]["agent"]["by_horizon"]) == 4
    assert {"action_live", "video_explained"} <= found["health"].keys()
    assert {"follows_actions_agent", "reads_frames", "inverse_vs_policy"} <= found["ratios"].keys()
    assert found["best_of"]["samples"] == 2 and "policy_and_video" in found["plan"]
    assert "forward dynamics other" in caplog.text and "only 3 episodes are held out" in caplog.text
    page = (tmp_path / "out" / "world_model.html").read_text()
    assert page.count("<svg") == 5 and "data:image/png;base64," in page and "<script" not in page
    assert "follows actions" in page and (tmp_path / "out" / "world_model.png").is_file()


def test_a_policy_alone_is_measured_in_actions(store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = write_checkpoint(tmp_path / "run", store, {"policy": 1.0}, env=None, env_runner=None)
    with caplog.at_level("INFO"):
        script.main(["--checkpoint", str(checkpoint), "--windows", "4", "--data", str(store)])
    found = json.loads((tmp_path / "run" / "world_model" / "world_model.json").read_text())
    assert set(found["frames"]) == {"codec", "still"} and set(found["actions"]) == {"policy"}
    assert set(found["frames"]["still"]) == {"psnr", "gain"} and "plan" not in found
    untrained = "not trained: forward_dynamics, inverse_dynamics, policy_and_video, video"
    assert untrained in caplog.text and untrained in (tmp_path / "run/world_model/world_model.html").read_text()


def test_too_few_held_out_episodes_are_named(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = write_checkpoint(tmp_path / "run", store, {"policy": 1.0})
    config = checkpoint / "config.yaml"
    config.write_text(config.read_text().replace("val_ratio: 0.5", "val_ratio: 0.02"))
    with pytest.raises(SystemExit):
        script.main(["--checkpoint", str(checkpoint)])
    assert "val_ratio=0.02 holds out 1 episode: at least 2 are needed" in capsys.readouterr().err


def test_clips_are_as_far_from_the_recorded_ones_as_they_should_be(store: Path, tmp_path: Path, capsys) -> None:
    script = load_script("evaluate_video")
    checkpoint = write_checkpoint(tmp_path / "run", store, {"policy": 1.0, "video": 1.0})
    words = ["--checkpoint", str(checkpoint), "--clips", "6", "--rows", "4", "--device", "cpu", "--sampler", "ddim3"]
    script.main([*words, "--iterations", "1", "2", "--json", str(tmp_path / "video.json")])
    found = json.loads((tmp_path / "video.json").read_text())
    assert (found["clips"], found["episodes"]) == (6, 3)
    rows = {name: distances["codec features"] for name, distances in found["rows"].items()}
    assert set(rows) == {"codec", "still", "1 iterations", "2 iterations"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows.values())
    assert rows["codec"]["value"] < rows["still"]["value"] < rows["1 iterations"]["value"]  # an untrained model's
    with pytest.raises(SystemExit):
        script.main([*words, "--i3d", "absent.pt"])
    assert "absent.pt: no I3D weights there" in capsys.readouterr().err
