"""scripts/benchmark.py, and the timing behind it, on a model of a few thousand weights."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from unified_video_action.compat.old_checkpoints import UVA
from unified_video_action.evaluation.inference_timing import compare_naive, stopwatch, time_latency, wake
from unified_video_action.evaluation.timing import Bench

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"
CONFIG = {
    "task": {
        "shape_meta": {
            "obs": {
                "image": {"shape": [3, 48, 48], "type": "rgb"},
                "agent_pos": {"shape": [2], "type": "low_dim"},
            },
            "action": {"shape": [2]},
        },
        "horizon": {"history": 4, "future": 2, "stride": 4, "actions": 8},
    },
    "model": {
        "transformer": {"dim": 32, "encoder_depth": 1, "decoder_depth": 1, "heads": 2},
        "video_head": {"width": 32, "depth": 1},
        "action_head": {"width": 32, "depth": 1, "pool": 2},
    },
    "vae": {"_target_": "unified_video_action.vae.tiny.TAEF2", "weights": "random", "image_size": 32},
    "policy": {"_target_": UVA, "action_steps": 8, "sampler": "ddim2", "video_sampler": "ddim3"},
    "training": {"steps": 10, "batch_size": 5},
}
PARTS = {"VAE encode", "transformer", "action diffusion", "total"}
VIDEO_PARTS = PARTS | {"video diffusion", "VAE decode"}


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def run(script: dict[str, Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """run(*arguments, config=CONFIG) -> what the script wrote with --json."""

    def run(*arguments: str, config: dict[str, Any] = CONFIG) -> dict[str, Any]:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        fixed = ["--config", str(tmp_path / "config.yaml"), "--json", str(tmp_path / "times.json"), "--device", "cpu"]
        script["main"]([*fixed, "--repeats", "2", "--warmup", "1", *arguments])
        return json.loads((tmp_path / "times.json").read_text())

    return run


def test_every_part_is_measured(run: Callable[..., dict[str, Any]]) -> None:
    results = run()
    latency = results["latency_ms"]
    assert set(latency) == {"policy, 4 new frames", "policy, 2 new frames", "policy and video"}
    assert set(latency["policy, 4 new frames"]) == set(latency["policy, 2 new frames"]) == PARTS
    assert set(latency["policy and video"]) == VIDEO_PARTS
    for rows in (*latency.values(), results["training"]["ms"]):
        for times in rows.values():
            assert 0 < times["min"] <= times["median"] <= times["max"]
        parts = sum(times["min"] for part, times in rows.items() if part != "total")
        assert parts <= rows["total"]["max"]
    training = results["training"]
    assert training["batch"] == 5
    assert training["samples_per_second"] == pytest.approx(5000 / training["ms"]["total"]["median"])
    rate = training["tflop_per_sample"] * training["samples_per_second"]
    assert training["mfu"] == pytest.approx(rate / training["matrix_tflops"]) and 0 < training["waiting"] < 1
    assert results["samplers"] == {"actions": "ddim2", "frames": "ddim3"}
    assert results["machine"]["device"] == "cpu" and results["versions"]["torch"] == torch.__version__.split("+")[0]


def test_options_choose_what_is_measured(run: Callable[..., dict[str, Any]]) -> None:
    results = run("--only", "latency", "--batch", "2", "--sampler", "ddim4", "--precision", "bf16")
    assert "training" not in results
    assert results["batch"] == 2 and results["samplers"] == {"actions": "ddim4", "frames": "ddim4"}
    results = run("--only", "training", "--training-batch", "2")
    assert "latency_ms" not in results and results["training"]["batch"] == 2


def test_the_loader_reads_the_training_data(
    run: Callable[..., dict[str, Any]], pusht_store: Path, tmp_path: Path
) -> None:
    dataset = {"_target_": "unified_video_action.dataset.pusht.PushTDataset", "paths": str(pusht_store)}
    shapes = CONFIG["task"]["shape_meta"]
    stored = {**shapes, "obs": {**shapes["obs"], "image": {"shape": [3, 96, 96], "type": "rgb"}}}
    config = {
        **CONFIG,
        "task": {**CONFIG["task"], "shape_meta": stored, "dataset": dataset},
        "data": {"frames": "latents", "cache_dir": str(tmp_path / "cache")},
    }
    results = run("--only", "loader", config=config)
    assert results["loader"]["batch"] == 5 and results["loader"]["samples_per_second"] > 0
    assert not {"latency_ms", "training"} & set(results)


def test_processes_are_compared_with_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    options = ["--config", str(tmp_path / "config.yaml"), "--json", str(tmp_path / "times.json"), "--device", "cpu"]
    threads = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(
        [*launcher, *options, "--only", "scaling", "--repeats", "2", "--warmup", "1"],
        env=threads, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "times.json").read_text())["scaling"]
    rates = found["samples_per_second"]
    assert found["processes"] == 2 and found["efficiency"] == pytest.approx(rates["all"] / (2 * rates["one"]))
    assert done.stdout.count("efficiency: ") == 1


def test_timing_counts_the_new_frames(script: dict[str, Any]) -> None:
    policy = script["make_policy"](CONFIG)
    moments, encoded = policy.codec.encode_images, []
    policy.codec.encode_images = lambda images: encoded.append(len(images)) or moments(images)
    time_latency(policy, Bench(torch.device("cpu"), repeats=1, warmup=0), (48, 48))
    assert encoded == [4, 4, 2, 4]  # a plan; a plan, then one that remembers half of it; a plan with video


def test_the_stopwatch_leaves_the_policy_as_it_was(script: dict[str, Any]) -> None:
    policy = script["make_policy"](CONFIG).accelerated()
    before = policy.model.replay
    with stopwatch(Bench(torch.device("cpu")), policy) as times:
        policy.decode(torch.zeros(1, 2, 32, 4, 4))
    assert policy.model.replay is before and set(times) == {"VAE decode"}


def test_fast_and_naive_plans_agree(run: Callable[..., dict[str, Any]]) -> None:
    results = run("--only", "naive")
    assert not {"latency_ms", "training"} & set(results) and results["peak_memory_mib"] > 0
    for name in ("policy_100", "policy_16"):
        compared = results[name]
        assert (compared["new_frames"], compared["history_frames"]) == (2, 4)
        assert compared["ratio"] == pytest.approx(compared["fast_ms"] / compared["naive_ms"])
        assert compared["max_abs_diff"] < 1e-4


def test_the_comparison_notices_a_difference(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    policy = script["make_policy"](CONFIG)
    wake(policy)
    encode = type(policy).encode_frames
    monkeypatch.setattr(type(policy), "encode_frames", lambda policy, frames: encode(policy, 255 - frames))
    compared = compare_naive(policy, Bench(torch.device("cpu"), repeats=1, warmup=0), (48, 48))
    assert compared["policy_16"]["max_abs_diff"] > 1e-4  # an untrained model that is not woken would say 0


def test_steadiness_is_measured(run: Callable[..., dict[str, Any]]) -> None:
    steady = run("--only", "steadiness", "--calls", "20")["steadiness"]
    assert steady["calls"] == 20 and 0 < steady["p50_ms"] <= steady["p99_ms"]
    assert steady["ratio"] == pytest.approx(steady["p99_ms"] / steady["p50_ms"])
    assert steady["device_growth_mib"] == 0 and steady["resident_growth_mib"] < 100


def test_mistakes_are_named(run: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture) -> None:
    for arguments, message in (
        (["vae.weights=random"], "overrides go with --config-name"),
        (["--repeats", "0"], "--repeats"),
        (["--calls", "5"], "--calls"),
        (["--sampler", "magic3"], "magic"),
        (["--only", "scaling"], "torchrun --nproc-per-node N"),
    ):
        with pytest.raises(SystemExit):
            run("--only", "latency", *arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(config={**CONFIG, "model": {"widht": 1}})
    assert "model.widht" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(run: Callable[..., dict[str, Any]]) -> None:
    results = run("--device", "cuda", "--precision", "bf16")
    assert results["latency_ms"]["policy and video"]["total"]["median"] > 0


def test_the_simulator_is_timed_alone(run: Callable[..., dict[str, Any]]) -> None:
    task = CONFIG["task"] | {"env": {"_target_": "unified_video_action.env.pusht.env.PushTEnv", "image_size": 32}}
    results = run("--only", "simulator", "--calls", "20", config=CONFIG | {"task": task})
    times = results["simulator"]
    assert times["steps_per_second"] == pytest.approx(1e3 / times["step_ms"], rel=0.9)
    assert times["build_s"] > 0 and times["reset_s"] > 0
    assert "latency_ms" not in results


def test_a_task_without_a_simulator_is_named(run: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run("--only", "simulator")
    assert "task.env is not set" in capsys.readouterr().err


def test_the_server_is_timed_alone(script: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    script["main"](["--only", "server", "--calls", "10", "--json", str(tmp_path / "server.json")])
    doors = json.loads((tmp_path / "server.json").read_text())["server"]
    assert set(doors) == {"websocket", "umi"}
    for row in doors.values():
        assert 0 < row["median_ms"] <= row["p99_ms"] and row["bytes"] > 4 * 224 * 224 * 3
    for arguments, message in (
        (["--only", "latency"], "--checkpoint"),
        (["--only", "server", "--only", "loader"], "alone"),
    ):
        with pytest.raises(SystemExit):
            script["main"](arguments)
        assert message in capsys.readouterr().err
