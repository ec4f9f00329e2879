"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unified_video_action.workspace.settings import EmaSettings


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
