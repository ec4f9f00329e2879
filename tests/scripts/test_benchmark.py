"""scripts/benchmark.py, and the timing behind it, on a model of a few thousand weights."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.loading import load_script
from tests.scripts.conftest import CONFIG
from unified_video_action.evaluation.inference_timing import compare_naive, wake
from unified_video_action.evaluation.timing import Bench

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"VAE encode", "transformer", "action diffusion", "total"}
ONCE = Bench(torch.device("cpu"), repeats=1, warmup=0)
script = load_script("benchmark")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """run(*arguments, config=CONFIG) -> what the script wrote with --json."""

    def run(*arguments: str, config: dict[str, Any] = CONFIG) -> dict[str, Any]:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        fixed = ["--config", str(tmp_path / "config.yaml"), "--json", str(tmp_path / "times.json"), "--device", "cpu"]
        script.main([*fixed, "--repeats", "2", "--warmup", "1", *arguments])
        return json.loads((tmp_path / "times.json").read_text())

    return run


def test_latency_and_training_are_measured_by_part(run: Callable[..., dict[str, Any]]) -> None:
    results = run()
    latency, training = results["latency_ms"], results["training"]
    assert set(latency) == {"policy, 4 new frames", "policy, 2 new frames", "policy and video"}
    assert set(latency["policy, 4 new frames"]) == set(latency["policy, 2 new frames"]) == PARTS
    assert (
        set(latency["policy and video"])
        == PARTS | {"video diffusion", "VAE decode"}
        == set(results["roofline_ms"]["policy and video"])
    )
    for rows in (*latency.values(), training["ms"]):
        assert all(0 < times["min"] <= times["median"] <= times["max"] for times in rows.values())
        assert sum(times["min"] for part, times in rows.items() if part != "total") <= rows["total"]["max"]
    assert training["batch"] == 8
    assert training["samples_per_second"] == pytest.approx(8000 / training["ms"]["total"]["median"])
    rate = training["tflop_per_sample"] * training["samples_per_second"]
    assert training["mfu"] == pytest.approx(rate / training["matrix_tflops"]) and 0 < training["waiting"] < 1
    assert results["samplers"] == {"actions": "ddim2", "frames": "ddim2"} and results["peak_memory_mib"] > 0
    assert results["machine"]["device"] == "cpu" and results["versions"]["torch"] == torch.__version__.split("+")[0]


def test_other_policies_are_timed_as_a_whole(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--config-name", "dp_unet_pusht_mini", "--only", "latency", "--repeats", "1", "--warmup", "0"]
    words += ["--device", "cpu", "--sampler", "ancestral2", "--json", str(tmp_path / "times.json")]
    script.main(words)
    results = json.loads((tmp_path / "times.json").read_text())
    (rows,) = results["latency_ms"].values()
    assert set(rows) == {"total"} and rows["total"]["median"] > 0
    assert results["samplers"] == {"actions": "ancestral2"} and results["roofline_ms"] == {}


def test_options_choose_what_is_measured(run: Callable[..., dict[str, Any]]) -> None:
    results = run("--only", "steadiness", "--calls", "20", "--batch", "2", "--sampler", "ddim4", "--precision", "bf16")
    assert not {"latency_ms", "training"} & set(results)
    assert results["batch"] == 2 and results["samplers"] == {"actions": "ddim4", "frames": "ddim4"}
    steady = results["steadiness"]
    assert steady["calls"] == 20 and 0 < steady["p50_ms"] <= steady["p99_ms"]
    assert steady["ratio"] == pytest.approx(steady["p99_ms"] / steady["p50_ms"])
    assert steady["device_growth_mib"] == 0 and steady["resident_growth_mib"] < 100


def test_the_loader_reads_the_training_data(
    run: Callable[..., dict[str, Any]], pusht_store: Path, tmp_path: Path
) -> None:
    task = CONFIG["task"] | {"dataset": CONFIG["task"]["dataset"] | {"paths": str(pusht_store)}}
    data = {"frames": "latents", "cache_dir": str(tmp_path / "cache")}
    loader = run("--only", "loader", "--training-batch", "5", config={**CONFIG, "task": task, "data": data})["loader"]
    assert loader["batch"] == 5 and loader["samples_per_second"] > 0


def test_processes_are_compared_with_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ["--config", str(tmp_path / "config.yaml"), "--json", str(tmp_path / "times.json"), "--device", "cpu"]
    done = subprocess.run(
        [*launcher, ROOT / "scripts/benchmark.py", *options, "--only", "scaling", "--repeats", "1", "--warmup", "0"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "times.json").read_text())["scaling"]
    rates = found["samples_per_second"]
    assert found["processes"] == 2 and found["efficiency"] == pytest.approx(rates["all"] / (2 * rates["one"]))
    assert done.stdout.count("efficiency: ") == 1


def test_fast_and_naive_plans_agree_and_a_difference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    policy = script.make_policy(CONFIG)
    wake(policy)  # an untrained model that is not woken would never say anything but 0
    compared = compare_naive(policy, ONCE)
    for found in compared.values():
        assert (found["new_frames"], found["history_frames"]) == (2, 4) and found["max_abs_diff"] < 1e-4
        assert found["ratio"] == pytest.approx(found["fast_ms"] / found["naive_ms"])
    encode = type(policy).encode_frames
    monkeypatch.setattr(type(policy), "encode_frames", lambda policy, frames: encode(policy, 255 - frames))
    assert compare_naive(policy, ONCE)["policy_16"]["max_abs_diff"] > 1e-4


def test_mistakes_are_named(run: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture) -> None:
    for arguments, config, message in (
        (["--only", "latency", "vae.weights=random"], {}, "overrides go with --config-name"),
        (["--only", "scaling"], {}, "torchrun --nproc-per-node N"),
        ([], {"model": {"widht": 1}}, "model.widht"),
        (["--only", "simulator"], {"task": CONFIG["task"] | {"env": None}}, "task.env is not set"),
    ):
        with pytest.raises(SystemExit):
            run(*arguments, config=CONFIG | config)
        assert message in capsys.readouterr().err


def test_the_simulator_and_the_server_are_timed_alone(run: Callable[..., dict[str, Any]]) -> None:
    results = run("--only", "simulator", "--calls", "20")
    times = results["simulator"]
    assert times["steps_per_second"] == pytest.approx(1e3 / times["step_ms"], rel=0.9)
    assert times["build_s"] > 0 and times["reset_s"] > 0 and "latency_ms" not in results
    served = run("--only", "server", "--calls", "10")["server"]
    assert set(served) == {"websocket", "umi"}
    for row in served.values():
        assert 0 < row["median_ms"] <= row["p99_ms"] and row["bytes"] > 4 * 224 * 224 * 3
