"""AdamW's parameter groups and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from unified_video_action.workspace.settings import OptimizerSettings, ScheduleSettings


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Two groups, in the paper code's order: without decay (biases and other vectors), then with it."""
    trainable = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    vectors = [parameter for name, parameter in trainable if parameter.ndim < 2 or name.endswith(".bias")]
    matrices = [parameter for name, parameter in trainable if not (parameter.ndim < 2 or name.endswith(".bias"))]
    return [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": weight_decay}]


def build_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW on the trainable parameters of a module that already lies on its device; fused kernels where they exist."""
    device = next(module.parameters()).device.type
    return torch.optim.AdamW(
        parameter_groups(module.named_parameters(), settings.weight_decay),
        lr=settings.learning_rate,
        betas=settings.betas,
        fused=device in ("cpu", "cuda", "mps", "xpu"),
    )


def learning_rate_factor(schedule: ScheduleSettings, step: int, steps: int, time_used: float = 0.0) -> float:
    """Learning rate of step 0 .. steps-1 as a share of its peak.

    `time_used` is the share of the time budget that has passed. The cosine follows whichever of steps and time is
    further on, so that a run with a budget ends at a rate of 0 on a slow machine too.
    """
    if step < schedule.warmup_steps:
        return step / schedule.warmup_steps
    if schedule.shape == "constant":
        return 1.0
    progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(progress, time_used))))
