"""uva_pusht_m_mini from the script that makes its demonstrations to an evaluation, with few steps."""

import json
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import eval_sim
from tests.loading import load_script
from unified_video_action.dataset.build import build_dataset
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

ROOT = Path(__file__).parents[2]
SHRUNK = (
    "vae.weights=random",
    "model.transformer.dim=32",
    "model.video_head.width=32",
    "model.action_head.width=32",
    "policy.sampler=ddim2",
    "policy.video_sampler=ddim2",
    "task.dataset.val_ratio=0.5",
    "training.batch_size=4",
    "trainer.device=cpu",
    "trainer.max_steps=2",
    "trainer.log_every=1",
    "trainer.validation_windows=2",
    "trainer.sheet_every=null",
    "trainer.tensorboard=false",
    "trainer.evaluate_every=2",
    "task.env_runner.n_episodes=2",
    "task.env_runner.n_envs=1",
    "task.env_runner.max_steps=9",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A $UVA_DATA_DIR with two demonstrations."""
    folder = tmp_path_factory.mktemp("data")
    output = folder / "pusht_m" / "scripted.zarr.zip"
    load_script("collect_demos").main(["--task", "pusht_m", "-n", "2", "--output", str(output), "--workers", "1"])
    return folder


def configuration(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        return compose(name, list(overrides))


def test_it_trains_and_is_scored_as_pusht(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVA_DATA_DIR", str(data))
    run = tmp_path / "run"
    config = configuration("uva_pusht_m_mini", f"output_dir={run}", f"data.cache_dir={tmp_path}/cache", *SHRUNK)
    TrainUnifiedVideoActionWorkspace(config).run()
    results = json.loads((run / "evaluation" / "step_00000002" / "results.json").read_text())
    assert [episode["seed"] for episode in results["episodes"]] == [100000, 100001]
    assert all(episode["steps"] == 9 and 0 <= episode["max_coverage"] <= 1 for episode in results["episodes"])
    assert results["config"]["task"]["env"]["_target_"].endswith("PushTMEnv")
    assert {"mean_score", "success_rate", "mean_max_coverage"} <= results["metrics"].keys()

    words = ["--checkpoint", run / "checkpoints" / "latest", "--n-episodes", 1, "--films", 0, "--device", "cpu",
             "--disturbance", "objects", "--output", tmp_path / "out"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["eval_sim.py", *map(str, words)])
    eval_sim.main()
    disturbed = json.loads((tmp_path / "out" / "results.json").read_text())
    assert disturbed["episodes"][0]["seed"] == 100000 and disturbed["facts"]["disturbance"] == "objects"


@pytest.mark.parametrize("name", ["uva_pusht_m", "uva_pusht_m_mini"])
def test_the_configurations_are_pushts_with_other_data_and_goals(
    name: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UVA_DATA_DIR", str(data))
    config, pusht = configuration(name), configuration(name.replace("_m", "", 1))
    sample = build_dataset(config).__getitems__([(0, 0)])  # of the store that the script has written
    assert sample["history"]["image"].shape == (1, 4, 3, 96, 96)
    assert ("agent_pos" in sample["low_dim"]) == (name == "uva_pusht_m_mini")
    for group in ("model", "vae", "policy", "training", "trainer", "data"):
        assert config[group] == pusht[group]
    assert config.task.env_runner == pusht.task.env_runner
    assert {key for key in pusht.task.env if config.task.env[key] != pusht.task.env[key]} == {"_target_"}
