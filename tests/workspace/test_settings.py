"""Settings refuse what cannot be meant, and name it; a folder has one training at a time."""

import os
import subprocess
import sys

import pytest

from unified_video_action.instantiate import build_dataclass
from unified_video_action.workspace.process import build_accelerator, locked, precision_on
from unified_video_action.workspace.settings import TrainerSettings, TrainingSettings

HOLD = "import sys, time; from pathlib import Path; from unified_video_action.workspace.process import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "training: TrainingSettings.steps must be a positive integer, got 0"),
        ({"batch_size": 2.5}, "training.batch_size: expected int, got 2.5"),
        ({"optimizer": {"lr": 1}}, "training.optimizer.lr: OptimizerSettings has no such field"),
        ({"ema": {"decay": 1.0}}, "EmaSettings.decay must be in"),
        ({"max_steps": "five"}, "TrainerSettings.max_steps must be a positive integer or null, got 'five'"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 needs a CUDA device"),
        ({"precision": "fp16", "sharding": "full"}, "fp16 cannot be used with trainer.sharding=full; take bf16"),
    ],
)
def test_what_cannot_be_meant_is_named(change, message):
    with pytest.raises(ValueError) as caught:
        if change.keys() & {"steps", "batch_size", "optimizer", "schedule", "ema"}:
            build_dataclass(TrainingSettings, {"steps": 10, "batch_size": 4, **change}, "training")
        build_accelerator(build_dataclass(TrainerSettings, change, "trainer"))
    assert message in str(caught.value)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("native", [True, False])
def test_automatic_precision_is_bf16_only_where_the_device_computes_in_it(monkeypatch, caplog, device, native):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native)
    assert precision_on(device, "auto") == ("bf16" if native else "no")
    assert precision_on(device, "no") == "no" and not caplog.records
    assert precision_on(device, "bf16") == "bf16"
    assert ("only imitates it" in caplog.text) is not native


def test_a_second_training_in_a_folder_is_refused_and_names_the_first(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"output_dir={tmp_path}: process {other.pid} on .* trains there"):
            with locked(tmp_path):
                pass
        other.kill()  # the lock of a process that was killed is free
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".training.owner").read_text()
    with locked(tmp_path):  # and so is that of one that ended
        pass
