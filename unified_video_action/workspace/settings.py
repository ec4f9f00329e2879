"""What a training run may be told: the recipe (`training`) and the control of one run (`trainer`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.02  # of tensors with two dimensions or more; biases and norms have none
    clip: float | None = None  # largest norm of the whole gradient; null: no clipping, as in the paper
    fan_in: int | None = None  # layers with more inputs learn more slowly, in proportion; null: all alike, as the paper

    def __post_init__(self) -> None:
        _require(self, "learning_rate", lambda x: x > 0, "above 0")
        _require(self, "betas", lambda x: len(x) == 2 and all(0 <= beta < 1 for beta in x), "two numbers in [0, 1)")
        _require(self, "weight_decay", lambda x: x >= 0, ">= 0")
        _require(self, "clip", lambda x: x is None or x > 0, "above 0, or null")
        _require(self, "fan_in", lambda x: x is None or _positive(x), "a positive integer, or null")


@dataclass(frozen=True)
class ScheduleSettings:
    """Learning rate over the steps."""

    shape: str = "cosine"  # cosine: from the peak to 0 at training.steps; constant: stays at the peak
    warmup_steps: int = 1000  # linear from 0

    def __post_init__(self) -> None:
        _require(self, "shape", lambda x: x in ("cosine", "constant"), "cosine or constant")
        _require(self, "warmup_steps", lambda x: x >= 0, ">= 0")


@dataclass(frozen=True)
class EmaSettings:
    """Average of the weights: after update n the decay is min(max_decay, 1 - n^-power), or a constant."""

    power: float = 0.75
    max_decay: float = 0.9999
    decay: float | None = None  # a constant decay in place of the schedule

    def __post_init__(self) -> None:
        _require(self, "power", lambda x: x > 0, "above 0")
        _require(self, "max_decay", lambda x: 0 <= x < 1, "in [0, 1)")
        _require(self, "decay", lambda x: x is None or 0 <= x < 1, "in [0, 1), or null")


@dataclass(frozen=True)
class TrainingSettings:
    """The recipe: what decides, besides the model and the data, which weights come out."""

    steps: int  # optimiser steps of the whole schedule
    batch_size: int  # samples of one step, over all processes together
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    ema: EmaSettings = field(default_factory=EmaSettings)

    def __post_init__(self) -> None:
        _require(self, "steps", _positive, "a positive integer")
        _require(self, "batch_size", _positive, "a positive integer")


@dataclass(frozen=True)
class TrainerSettings:
    """One run: how long, on what, and what it leaves behind. Nothing here changes what a step computes.

    Rounding apart: precision, compilation and the number of processes show in the last digits.
    """

    max_steps: int | None = None  # stop after this step, short of training.steps; the schedule stays as it is
    time_budget_minutes: float | None = None  # end the schedule within this time, earlier parts of the run included
    device: str = "auto"  # auto (an accelerator if there is one), cpu or cuda
    precision: str = "no"  # no (float32), bf16, fp16, or auto: bf16 where the device computes in it, else float32
    num_workers: int = 0  # processes that prepare batches; 0: the training process does
    micro_batch: int | None = None  # most samples on a device at once; larger batches accumulate gradients
    compile: bool = False  # fuse kernels with torch.compile; micro-batches must be of equal size
    sharding: str = "none"  # none: every process has the whole model; full: a share of it (FSDP)
    peak_tflops: float | None = None  # of a device, which train/mfu refers to; null: that of a matrix product, measured
    resume: bool = True  # continue from the newest checkpoint in output_dir, if there is one
    checkpoint_every: int | None = 1000  # steps; null: only at the end, and whenever a score is measured
    keep_top_k: int = 3  # checkpoints kept for their score, besides the newest
    monitor: str = "evaluation/mean_score"  # the metric that scores a checkpoint
    monitor_mode: str = "max"  # max or min: which is better
    log_every: int = 10  # steps between two looks at the losses
    validate_every: int | None = 1000  # losses, action and frame errors on held-out windows; null: never
    validation_windows: int = 64  # how many
    sheet_every: int | None = 1000  # a picture of imagined against true frames; null: never
    sheet_windows: int = 4  # rows of it
    evaluate_every: int | None = None  # rollouts in the simulator; null: never
    tensorboard: bool = True
    wandb: bool = False  # offline unless an API key is known
    wandb_project: str = "unified_video_action"

    def __post_init__(self) -> None:
        for name in ("max_steps", "micro_batch", "checkpoint_every", "validate_every", "sheet_every", "evaluate_every"):
            _require(self, name, lambda x: x is None or _positive(x), "a positive integer or null")
        for name in ("log_every", "validation_windows", "sheet_windows"):
            _require(self, name, _positive, "a positive integer")
        for name in ("num_workers", "keep_top_k"):
            _require(self, name, lambda x: x >= 0, ">= 0")
        _require(self, "time_budget_minutes", lambda x: x is None or x > 0, "above 0, or null")
        _require(self, "device", lambda x: x in ("auto", "cpu", "cuda"), "auto, cpu or cuda")
        _require(self, "precision", lambda x: x in ("auto", "no", "bf16", "fp16"), "auto, no, bf16 or fp16")
        _require(self, "compile", lambda x: isinstance(x, bool), "true or false")
        _require(self, "sharding", lambda x: x in ("none", "full"), "none or full")
        _require(self, "peak_tflops", lambda x: x is None or x > 0, "above 0, or null")
        _require(self, "monitor_mode", lambda x: x in ("max", "min"), "max or min")
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("TrainerSettings.precision fp16 needs a GPU; take bf16 or no with trainer.device=cpu")
        if self.precision == "fp16" and self.sharding == "full":
            raise ValueError("TrainerSettings.precision fp16 cannot be used with trainer.sharding=full; take bf16")


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require(settings: object, name: str, test: Callable[[Any], bool], expected: str) -> None:
    value = getattr(settings, name)
    try:
        fine = test(value)
    except TypeError:  # not even comparable, such as a word for a number
        fine = False
    if not fine:
        raise ValueError(f"{type(settings).__name__}.{name} must be {expected}, got {value!r}")
