"""scripts/export_checkpoint.py: what it ships, that this acts as the run's weights do, and what it refuses."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import eval_sim
from tests.loading import load_script
from unified_video_action.compat.checkpoint_files import fault
from unified_video_action.policy.build import load_policy

script = load_script("export_checkpoint")
NEEDED = {"README.md", "config.yaml", "metrics.json", "normalizer.json"}


@pytest.fixture
def export(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """export(*options) -> the folder it wrote."""
    monkeypatch.delenv("UVA_DATA_DIR", raising=False)

    def run(*options: object) -> Path:
        output = tmp_path / "shipped"
        script.main(
            ["--checkpoint", str(trained_run / "checkpoints/latest"), "--output", str(output), *map(str, options)]
        )
        return output

    return run


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """evaluate(checkpoint, *options) -> results.json, which lies in tmp_path/evaluation."""

    def run(checkpoint: Path, *options: object, output: str = "evaluation") -> dict[str, Any]:
        words = ["--checkpoint", checkpoint, "--videos", 0, "--device", "cpu", "--output", tmp_path / output, *options]
        monkeypatch.setattr(sys, "argv", ["eval_sim.py", *map(str, words)])
        eval_sim.main()
        return json.loads((tmp_path / output / "results.json").read_text())

    return run


def refusal(export: Callable, capsys: pytest.CaptureFixture, *options: object) -> str:
    with pytest.raises(SystemExit):
        export(*options)
    return " ".join(capsys.readouterr().err.split())


def test_only_what_acting_needs_is_shipped_without_paths_of_this_machine(export: Callable[..., Path]) -> None:
    folder = export()
    assert {path.name for path in folder.iterdir()} == NEEDED | {"ema.safetensors"}
    assert "/elsewhere" not in "".join((folder / name).read_text() for name in NEEDED)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["output_dir"] == "outputs/little" and config["data"]["cache_dir"] is None
    paths = [source["path"] for source in config["task"]["dataset"]["paths"]]
    assert paths == ["data/pusht.zip", "data/made.zip"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["files"].keys() == {"config.yaml", "ema.safetensors", "normalizer.json"}
    assert fault(folder, metrics["files"]) is None
    command = "python train.py --config-name=uva_little training.batch_size=8 "
    command += "'task.dataset.paths=[{path:data/pusht.zip,weight:0.5}]'"
    training = {"steps": 10, "batch_size": 8, "samples": 80, "seed": 3, "minutes": 1.5, "commands": [command]}
    assert metrics["training"] == training


@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.0), ("float16", 1e-3)])
def test_the_shipped_policy_acts_as_the_trained_one(
    export: Callable[..., Path], trained_run: Path, dtype: str, most: float
) -> None:
    folder = export("--dtype", dtype, "--max-piece-mb", 0.25)
    assert len(list(folder.glob("ema-0000*-of-0000*.safetensors"))) > 1
    assert all(path.stat().st_size <= 250_000 for path in folder.iterdir())
    before, after = load_policy(trained_run / "checkpoints/latest"), load_policy(folder)
    assert {parameter.dtype for parameter in after.parameters()} == {torch.float32}
    changes = [float((a - b).detach().abs().max()) for a, b in zip(before.model.parameters(), after.model.parameters())]
    storage = json.loads((folder / "metrics.json").read_text())["storage"]
    assert storage["largest_change_of_a_weight"] == pytest.approx(max(changes)) and max(changes) <= most
    assert (max(changes) > 0) == (dtype != "float32") and storage["dtype"] == dtype
    frames = torch.randint(256, (1, 4, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    obs = {"image": frames, "agent_pos": torch.tensor([[[100.0, 200.0]]])}
    actions = [
        policy.predict_action(obs, torch.Generator().manual_seed(0))["action_pred"] for policy in (before, after)
    ]
    torch.testing.assert_close(*actions, atol=512 * most, rtol=0)


def test_its_figures_are_those_of_the_evaluation_and_repeat_without_options(
    export: Callable[..., Path], evaluate: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = export("--dtype", "float16")
    options = ("--n-episodes", 3, "--seed", 100_004, "--sampler", "ddim3", "--set", "task.env_runner.action_steps=4")
    options += ("policy.iterations=3",)
    results = evaluate(folder, *options)
    export("--dtype", "float16", "--evaluation", tmp_path / "evaluation", "--replace")
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("mean_score", "success_rate", "mean_max_coverage"):
        assert metrics[name] == results["metrics"][name]
        interval = metrics["intervals"][name]
        assert interval["low"] == results["metrics"][f"{name}_low"] <= metrics[name] <= interval["high"]
    evaluation = metrics["evaluation"]
    assert evaluation["command"] == "python eval_sim.py --checkpoint checkpoints/shipped"
    chosen = [evaluation[name] for name in ("start_seed", "action_steps", "sampler", "max_steps")]
    assert chosen == [100_004, 4, "ddim3", 16] and metrics["episodes"] == 3
    assert yaml.safe_load((folder / "config.yaml").read_text())["policy"]["iterations"] == 3
    again = evaluate(folder, output="again")
    assert again["episodes"] == results["episodes"]
    assert f"{metrics['mean_score']:.3f}" in (folder / "README.md").read_text()

    others = ("--dtype", "bfloat16", "--evaluation", tmp_path / "evaluation", "--replace")
    assert "is of other weights" in refusal(export, capsys, *others)
    evaluate(folder, "--n-episodes", 1, "--precision", "bf16", output="fast")
    others = ("--dtype", "float16", "--evaluation", tmp_path / "fast", "--replace")
    assert "made with --precision, which a configuration does not repeat" in refusal(export, capsys, *others)


def test_what_exists_is_replaced_only_on_demand_and_only_by_a_whole_folder(
    export: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    folder = export()
    assert "exists already; --replace replaces it" in refusal(export, capsys)
    message = refusal(export, capsys, "--replace", "--max-mb", 0.3)
    assert re.search(r"would have 0\.\d MB, more than 0\.3: store half precision \(--dtype float16\)", message)
    assert load_file(folder / "ema.safetensors") and [path.name for path in folder.parent.glob(".*")] == []


def change_config(run: Path, change: dict) -> None:
    path = run / "checkpoints/latest/config.yaml"
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(path), change), path)


def test_other_paths_of_this_machine_are_refused_and_data_gets_a_general_name(
    export: Callable[..., Path], trained_run: Path, capsys: pytest.CaptureFixture
) -> None:
    change_config(trained_run, {"init_from": "/elsewhere/old", "task": {"dataset": {"paths": ["x.zip", "../y.zip"]}}})
    assert "init_from: /elsewhere/old" in refusal(export, capsys)
    change_config(trained_run, {"init_from": None})
    config = yaml.safe_load((export("--training-command", "make") / "config.yaml").read_text())
    assert config["task"]["dataset"]["paths"] == ["x.zip", "data/y.zip"]
    by_name = {"task": {"dataset": {"sources": {"robot": {"path": "/elsewhere/z.zip"}}}}}
    assert script.generic_paths(by_name) == {"/elsewhere/z.zip": "data/z.zip"}


def test_weights_beyond_half_precision_are_named(
    export: Callable[..., Path], trained_run: Path, capsys: pytest.CaptureFixture
) -> None:
    path = trained_run / "checkpoints/latest/ema.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1e5}, path)
    assert f"{name} has weights up to 1e+05: too large for float16" in refusal(export, capsys, "--dtype", "float16")
    assert export("--dtype", "bfloat16").is_dir()
