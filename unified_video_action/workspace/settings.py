"""Settings of a training run: the recipe (`training`) and the control of one run (`trainer`).

`config/base.yaml` says what each field means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.02
    clip: float | None = None
    fan_in: int | None = None

    def __post_init__(self) -> None:
        _require(self, "above 0", lambda x: x > 0, "learning_rate")
        _require(self, "two numbers in [0, 1)", lambda x: len(x) == 2 and all(0 <= beta < 1 for beta in x), "betas")
        _require(self, ">= 0", lambda x: x >= 0, "weight_decay")
        _require(self, "above 0, or null", lambda x: x is None or x > 0, "clip")
        _require(self, "a positive integer, or null", lambda x: x is None or _positive(x), "fan_in")


@dataclass(frozen=True)
class ScheduleSettings:
    """Learning rate over the steps."""

    shape: str = "cosine"
    warmup_steps: int = 1000

    def __post_init__(self) -> None:
        _require(self, "cosine or constant", lambda x: x in ("cosine", "constant"), "shape")
        _require(self, ">= 0", lambda x: x >= 0, "warmup_steps")


@dataclass(frozen=True)
class EmaSettings:
    """Average of the weights: after update n the decay is min(max_decay, 1 - n^-power), or a constant."""

    power: float = 0.75
    max_decay: float = 0.9999
    decay: float | None = None

    def __post_init__(self) -> None:
        _require(self, "above 0", lambda x: x > 0, "power")
        _require(self, "in [0, 1)", lambda x: 0 <= x < 1, "max_decay")
        _require(self, "in [0, 1), or null", lambda x: x is None or 0 <= x < 1, "decay")


@dataclass(frozen=True)
class TrainingSettings:
    """The recipe: what decides, besides the model and the data, which weights come out."""

    steps: int
    batch_size: int
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    ema: EmaSettings = field(default_factory=EmaSettings)

    def __post_init__(self) -> None:
        _require(self, "a positive integer", _positive, "steps", "batch_size")


@dataclass(frozen=True)
class TrainerSettings:
    """One run: how long, on what, and what it leaves behind. Nothing here changes what a step computes.

    Rounding apart: precision, compilation and the number of processes show in the last digits.
    """

    max_steps: int | None = None
    time_budget_minutes: float | None = None
    device: str = "auto"
    precision: str = "no"
    num_workers: int = 0
    micro_batch: int | None = None
    compile: bool = False
    sharding: str = "none"
    peak_tflops: float | None = None
    resume: bool = True
    checkpoint_every: int | None = 1000
    keep_top_k: int = 3
    monitor: str = "evaluation/mean_score"
    monitor_mode: str = "max"
    log_every: int = 10
    validate_every: int | None = 1000
    validation_windows: int = 64
    prediction_grid_every: int | None = 1000
    prediction_grid_windows: int = 4
    evaluate_every: int | None = None
    evaluate_videos: int = 1
    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "unified_video_action"

    def __post_init__(self) -> None:
        every = ("checkpoint_every", "validate_every", "prediction_grid_every", "evaluate_every")
        optional = ("max_steps", "micro_batch", *every)
        _require(self, "a positive integer or null", lambda x: x is None or _positive(x), *optional)
        _require(self, "a positive integer", _positive, "log_every", "validation_windows", "prediction_grid_windows")
        _require(self, ">= 0", lambda x: x >= 0, "num_workers", "keep_top_k", "evaluate_videos")
        _require(self, "above 0, or null", lambda x: x is None or x > 0, "time_budget_minutes", "peak_tflops")
        _require(self, "auto, cpu or cuda", lambda x: x in ("auto", "cpu", "cuda"), "device")
        _require(self, "auto, no, bf16 or fp16", lambda x: x in ("auto", "no", "bf16", "fp16"), "precision")
        _require(self, "none or full", lambda x: x in ("none", "full"), "sharding")
        _require(self, "max or min", lambda x: x in ("max", "min"), "monitor_mode")
        if self.precision == "fp16" and self.sharding == "full":
            raise ValueError("TrainerSettings.precision fp16 cannot be used with trainer.sharding=full; take bf16")


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require(settings: object, expected: str, test: Callable[[Any], bool], *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        try:
            fine = test(value)
        except TypeError:  # not even comparable, such as a word for a number
            fine = False
        if not fine:
            raise ValueError(f"{type(settings).__name__}.{name} must be {expected}, got {value!r}")
