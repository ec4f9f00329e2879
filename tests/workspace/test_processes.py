"""Runs in processes of their own: killed at any moment, several at once, continued by another number of them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.workspace.fakes import build_loop, metrics, trainer_settings, training_settings, weights
from unified_video_action.model.task_modes import ModeMix
from unified_video_action.workspace import checkpoint as ckpt

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("fakes.py")


def start(*arguments, processes: int | None = None) -> subprocess.CompletedProcess:
    launcher = [sys.executable]
    if processes:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    threads = str(torch.get_num_threads())  # sums of floats depend on it
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("whole")
    loop = build_loop(folder, dropout=0.3)
    loop.run()
    return weights(loop), metrics(folder)


def finish_and_compare(folder: Path, whole) -> None:
    loop = build_loop(folder, dropout=0.3)
    loop.run()
    assert loop.step == 20
    different = [name for name, value in weights(loop).items() if not torch.equal(value, whole[0][name])]
    assert not different
    assert [line["train/loss"] for line in metrics(folder)] == [line["train/loss"] for line in whole[1]]


def test_killed_and_resumed_equals_uninterrupted(tmp_path, whole):
    step = int.from_bytes(os.urandom(1), "big") % 19 + 1
    ended = start(tmp_path, "--dropout", 0.3, "--kill-at", step)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(metrics(tmp_path)) == step, f"killed at step {step}"
    saved = [ckpt.step_of(path) for path in ckpt.checkpoints(tmp_path / "checkpoints")]
    assert saved == ([step // 5 * 5] if step >= 5 else [])
    finish_and_compare(tmp_path, whole)


def test_killed_while_writing_a_checkpoint_the_last_good_one_loads(tmp_path, whole):
    ended = start(tmp_path, "--dropout", 0.3, "--kill-in-write", 10)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    root = tmp_path / "checkpoints"
    (unfinished,) = root.glob(".step_00000010.*")
    assert (unfinished / "ema.safetensors").exists() and not (unfinished / "trainer_state.json").exists()
    assert [path.name for path in ckpt.checkpoints(root)] == ["step_00000005"]
    assert (root / "latest").resolve().name == "step_00000005"
    finish_and_compare(tmp_path, whole)
    assert not unfinished.exists()


def test_sigterm_saves_and_exits_well(tmp_path, whole):
    ended = start(tmp_path, "--dropout", 0.3, "--kill-at", 7, "--send", "SIGTERM")
    assert ended.returncode == 0, ended.stderr
    assert "Stopped after step 8: SIGTERM" in ended.stderr
    assert (tmp_path / "checkpoints" / "latest").resolve().name == "step_00000008"
    finish_and_compare(tmp_path, whole)


def agree_but_for_rounding(mine: Path, theirs: Path) -> None:
    """Two whole runs: losses and what is left at the end. Sums are taken in another order, hence the tolerance."""
    for a, b in zip(metrics(mine), metrics(theirs), strict=True):
        assert a.keys() == b.keys()
        for name in ("train/loss", "train/video", "train/action", "train/gradient_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), a["step"]
    for file in ("model.safetensors", "ema.safetensors", "trainer_state.safetensors"):
        a, b = (load_file(folder / "checkpoints" / "latest" / file) for folder in (mine, theirs))
        assert a.keys() == b.keys()
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_equal_one_and_one_continues_two(tmp_path, sharding):
    """With micro-batches too."""
    build_loop(tmp_path / "alone").run()
    two = (tmp_path / "two", "--sharding", sharding)
    ended = start(*two, "--max-steps", 12, "--micro-batch", 4, processes=2)
    assert ended.returncode == 0, ended.stderr
    assert [line["step"] for line in metrics(tmp_path / "two")] == list(range(1, 13))
    state = load_file(tmp_path / "two" / "checkpoints" / "latest" / "trainer_state.safetensors")
    assert not any(name.startswith("idle") for name in state)  # no gradient anywhere: left alone in both
    build_loop(tmp_path / "two").run()
    agree_but_for_rounding(tmp_path / "alone", tmp_path / "two")


def test_shards_continue_what_one_process_began(tmp_path):
    build_loop(tmp_path / "alone").run()
    build_loop(tmp_path / "two", trainer=trainer_settings(max_steps=7)).run()
    ended = start(tmp_path / "two", "--sharding", "full", "--look-every", 20, processes=2)
    assert ended.returncode == 0, ended.stderr
    *_, looked = lines = metrics(tmp_path / "two")
    average = load_file(tmp_path / "two" / "checkpoints" / "latest" / "ema.safetensors")
    assert looked["look/sum"] == pytest.approx(sum(float(value.abs().sum()) for value in average.values()))
    (tmp_path / "two" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    agree_but_for_rounding(tmp_path / "alone", tmp_path / "two")


@pytest.mark.parametrize(("mix", "sharding"), [("two samples", "none"), ("one mode", "none"), ("two samples", "full")])
def test_processes_without_samples_of_a_mode_stay_in_step(tmp_path, mix, sharding):
    """One sample each, so that heads idle in one process, or one mode for the batch, so that they idle in both."""
    options = ("--batch", 2) if mix == "two samples" else ("--per-batch",)
    training = training_settings(batch_size=2 if mix == "two samples" else 12)
    build_loop(tmp_path / "alone", training, mode_mix=ModeMix(per_batch=mix == "one mode")).run()
    ended = start(tmp_path / "two", "--sharding", sharding, *options, processes=2)
    assert ended.returncode == 0, ended.stderr
    agree_but_for_rounding(tmp_path / "alone", tmp_path / "two")


def test_a_signal_to_one_process_stops_all(tmp_path):
    ended = start(tmp_path, "--kill-at", 7, "--send", "SIGTERM", processes=2)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "checkpoints" / "latest").resolve().name == "step_00000008"
