"""AdamW's parameter groups, the learning rate of each step, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unified_video_action.workspace.settings import EmaSettings, OptimizerSettings, ScheduleSettings


def parameter_groups(module: nn.Module, settings: OptimizerSettings) -> list[dict]:
    """Trainable parameters by what the optimiser does with them; `scale` is a group's share of the learning rate.

    First those without decay (biases and other vectors), then those with it, as in the paper's code. With
    `settings.fan_in`, the weights of layers with more inputs than that are groups of their own, whose rate is lower in
    proportion. A step of Adam changes every weight by about the rate, so what it changes in a layer's output grows with
    the layer's inputs (Yang et al., Tensor Programs V); the trunk of the action head has thousands.
    """
    inputs = {}
    if settings.fan_in is not None:
        layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        inputs = {layer.weight: max(layer.weight[0].numel(), settings.fan_in) for layer in layers}
    vectors: list[nn.Parameter] = []
    matrices: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and (parameter.ndim < 2 or name.endswith(".bias")):
            vectors.append(parameter)
        elif parameter.requires_grad:
            scale = settings.fan_in / inputs[parameter] if parameter in inputs else 1.0
            matrices.setdefault(scale, []).append(parameter)
    return [
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
        *({"params": group, "weight_decay": settings.weight_decay, "scale": s} for s, group in matrices.items()),
    ]


def build_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW on the trainable parameters of a module that already lies on its device; fused kernels where they exist."""
    device = next(module.parameters()).device.type
    return torch.optim.AdamW(
        parameter_groups(module, settings),
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


class Ema:
    """Average of a module's parameters, in float32, `weights` by name; each lies where its parameter does.

    Those that are given go on; without any the average begins with the parameters.
    The paper's schedule: after update n the decay is min(max_decay, 1 - n^-power), so the first update copies.
    """

    def __init__(self, module: nn.Module, settings: EmaSettings, weights: Mapping[str, Tensor] | None = None) -> None:
        self.settings = settings
        self.parameters = {name: value.detach() for name, value in module.named_parameters()}  # the module's memory
        self.weights = weights or {name: value.clone().float() for name, value in self.parameters.items()}

    def decay(self, update: int) -> float:
        """Decay of update number 1, 2, ..."""
        if self.settings.decay is not None:
            return self.settings.decay
        return min(self.settings.max_decay, 1 - update**-self.settings.power)

    @torch.no_grad()
    def update(self, update: int) -> None:
        torch._foreach_lerp_(list(self.weights.values()), list(self.parameters.values()), 1 - self.decay(update))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the module computes with the averaged weights."""
        kept = {name: value.clone() for name, value in self.parameters.items()}
        _copy(self.weights, self.parameters)
        try:
            yield
        finally:
            _copy(kept, self.parameters)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        _copy(weights, self.weights)


def _copy(given: Mapping[str, Tensor], to: Mapping[str, Tensor]) -> None:
    for name, value in to.items():
        value.copy_(given[name])
