"""Settings refuse what cannot be meant, and name it."""

import pytest

from unified_video_action.instantiate import build_dataclass
from unified_video_action.workspace.accelerator import precision_on
from unified_video_action.workspace.settings import TrainerSettings, TrainingSettings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "training: TrainingSettings.steps must be a positive integer, got 0"),
        ({"batch_size": 2.5}, "training.batch_size: expected int, got 2.5"),
        ({"optimizer": {"learning_rate": -1}}, "training.optimizer: OptimizerSettings.learning_rate must be above 0"),
        ({"optimizer": {"lr": 1}}, "training.optimizer.lr: OptimizerSettings has no such field"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "OptimizerSettings.betas must be two numbers in"),
        ({"optimizer": {"betas": 0.9}}, "OptimizerSettings.betas must be two numbers in"),
        ({"optimizer": {"clip": "much"}}, "OptimizerSettings.clip must be above 0, or null, got 'much'"),
        ({"schedule": {"shape": "linear"}}, "ScheduleSettings.shape must be cosine or constant, got 'linear'"),
        ({"ema": {"decay": 1.0}}, "EmaSettings.decay must be in"),
    ],
)
def test_training(change, message):
    with pytest.raises(ValueError) as caught:
        build_dataclass(TrainingSettings, {"steps": 10, "batch_size": 4, **change}, "training")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_steps": "five"}, "TrainerSettings.max_steps must be a positive integer or null, got 'five'"),
        ({"precision": "fp8"}, "TrainerSettings.precision must be auto, no, bf16 or fp16, got 'fp8'"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 needs a GPU"),
        ({"precision": "fp16", "sharding": "full"}, "fp16 cannot be used with trainer.sharding=full; take bf16"),
        ({"sharding": "half"}, "TrainerSettings.sharding must be none or full, got 'half'"),
        ({"peak_tflops": 0}, "TrainerSettings.peak_tflops must be above 0, or null, got 0"),
        ({"log_every": 0}, "TrainerSettings.log_every must be a positive integer"),
        ({"epochs": 3}, "trainer.epochs: TrainerSettings has no such field"),
    ],
)
def test_trainer(change, message):
    with pytest.raises(ValueError) as caught:
        build_dataclass(TrainerSettings, change, "trainer")
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


def test_the_missing_key_is_named():
    with pytest.raises(ValueError, match="training.steps: TrainingSettings needs a value for it"):
        build_dataclass(TrainingSettings, {"batch_size": 4}, "training")
