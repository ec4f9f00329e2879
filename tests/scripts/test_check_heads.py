"""scripts/check_heads.py tells a recipe that makes the action head collapse from those that are shipped."""

import json
from pathlib import Path

import pytest

from tests.loading import load_script
from unified_video_action.workspace.commands import read_config

script = load_script("check_heads")


def test_a_shipped_recipe_is_healthy(tmp_path: Path) -> None:
    options = ["--config-name", "uva_umi_mini", "--steps", "150", "--batch-size", "2", "--depth", "1"]
    assert script.main([*options, "--json", str(tmp_path / "heads.json")]) == 0
    row = json.loads((tmp_path / "heads.json").read_text())["uva_umi_mini"]
    assert row["cut"] == "depth 1 of 2" and not row["collapsed"]
    assert row["after"]["action_spread"] > 0.1 and row["after"]["proprio_spread"] > 0.1


def test_a_rate_without_fan_in_that_is_too_high_is_called_collapsed(caplog: pytest.LogCaptureFixture) -> None:
    bad = ["optimizer.fan_in=null", "optimizer.learning_rate=0.005", "schedule.warmup_steps=20"]
    options = ["--config-name", "uva_pusht_mini", "--steps", "60", "--batch-size", "2", "--depth", "1"]
    assert script.main([*options, *(f"training.{each}" for each in bad)]) == 1
    assert "the action head no longer depends on its input" in caplog.text


def test_wide_models_are_cut_and_configurations_that_train_alike_run_once() -> None:
    configs = {name: read_config(name) for name in ("uva_pusht", "uva_pusht_m", "uva_umi", "uva_pusht_mini")}
    cuts = {name: script.cut(config, None) for name, config in configs.items()}
    assert cuts["uva_pusht"] == "depth 1 of 12, frames of 64 px in place of 256, 16 video tokens"
    assert cuts["uva_pusht_mini"] == "" and configs["uva_pusht"]["model"]["transformer"]["dim"] == 768
    keys = {name: script.trained_alike(config) for name, config in configs.items()}
    assert keys["uva_pusht"] == keys["uva_pusht_m"] != keys["uva_umi"]
