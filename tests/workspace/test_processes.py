"""Runs in processes of their own: killed at any moment, several at once, continued by another number of them."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import start
from tests.workspace.fakes import (
    agree_but_for_rounding,
    build_loop,
    metrics,
    train,
    trainer_settings,
    training_settings,
    weights,
)
from unified_video_action.model.task_modes import ModeMix
from unified_video_action.workspace import checkpoint as ckpt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run in one process, with dropout."""
    folder = tmp_path_factory.mktemp("whole")
    loop = build_loop(folder, dropout=0.3)
    loop.run()
    return weights(loop), metrics(folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One without dropout, which depends on how many processes there are."""
    folder = tmp_path_factory.mktemp("alone")
    build_loop(folder).run()
    return folder


def finish_and_compare(folder: Path, whole) -> None:
    loop = build_loop(folder, dropout=0.3)
    loop.run()
    assert loop.step == 20
    different = [name for name, value in weights(loop).items() if not torch.equal(value, whole[0][name])]
    assert not different
    assert [line["train/loss"] for line in metrics(folder)] == [line["train/loss"] for line in whole[1]]


def test_killed_and_resumed_equals_uninterrupted(tmp_path, whole):
    step = int.from_bytes(os.urandom(1), "big") % 19 + 1
    assert start(train, tmp_path, dropout=0.3, kill_at=step) == [-signal.SIGKILL]
    assert len(metrics(tmp_path)) == step, f"killed at step {step}"
    saved = [ckpt.step_of(path) for path in ckpt.checkpoints(tmp_path / "checkpoints")]
    assert saved == ([step // 5 * 5] if step >= 5 else [])
    finish_and_compare(tmp_path, whole)


def test_killed_while_writing_a_checkpoint_the_last_good_one_loads(tmp_path, whole):
    assert start(train, tmp_path, dropout=0.3, kill_in_write=10) == [-signal.SIGKILL]
    root = tmp_path / "checkpoints"
    (unfinished,) = root.glob(".step_00000010.*")
    assert (unfinished / "ema.safetensors").exists() and not (unfinished / "trainer_state.json").exists()
    assert [path.name for path in ckpt.checkpoints(root)] == ["step_00000005"]
    assert (root / "latest").resolve().name == "step_00000005"
    finish_and_compare(tmp_path, whole)
    assert not unfinished.exists()


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_equal_one_and_one_continues_two(tmp_path, sharding, alone):
    """With micro-batches too."""
    assert start(train, tmp_path, sharding=sharding, max_steps=12, micro_batch=4, processes=2) == [0, 0]
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 13))
    state = load_file(tmp_path / "checkpoints" / "latest" / "trainer_state.safetensors")
    assert not any(name.startswith("idle") for name in state)  # no gradient anywhere: left alone in both
    build_loop(tmp_path).run()
    agree_but_for_rounding(alone, tmp_path)


def test_shards_continue_what_one_process_began(tmp_path, alone):
    build_loop(tmp_path, trainer=trainer_settings(max_steps=7)).run()
    assert start(train, tmp_path, sharding="full", look_every=20, processes=2) == [0, 0]
    *_, looked = lines = metrics(tmp_path)
    average = load_file(tmp_path / "checkpoints" / "latest" / "ema.safetensors")
    assert looked["look/sum"] == pytest.approx(sum(float(value.abs().sum()) for value in average.values()))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    agree_but_for_rounding(alone, tmp_path)


@pytest.mark.parametrize(("batch_size", "sharding"), [(2, "none"), (12, "none"), (2, "full")])
def test_processes_without_samples_of_a_mode_stay_in_step(tmp_path, batch_size, sharding):
    """One sample each, so that heads idle in one process; or one mode for the batch, so that they idle in both."""
    training, per_batch = training_settings(batch_size=batch_size), batch_size == 12
    build_loop(tmp_path / "alone", training, mode_mix=ModeMix(per_batch=per_batch)).run()
    options = {"batch_size": batch_size, "per_batch": per_batch, "sharding": sharding}
    assert start(train, tmp_path / "two", **options, processes=2) == [0, 0]
    agree_but_for_rounding(tmp_path / "alone", tmp_path / "two")


def test_a_signal_to_one_process_stops_all(tmp_path):
    assert start(train, tmp_path, kill_at=7, send="SIGTERM", processes=2) == [0, 0]
    assert (tmp_path / "checkpoints" / "latest").resolve().name == "step_00000008"
