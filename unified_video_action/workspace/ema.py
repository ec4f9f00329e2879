"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unified_video_action.workspace.settings import EmaSettings
from unified_video_action.workspace.sharding import own_part


class Ema:
    """Average of a module's parameters, in float32, on the module's device; of sharded ones, of this process's part.

    The paper's schedule: after update n the decay is min(max_decay, 1 - n^-power), so the first update copies.
    """

    def __init__(self, module: nn.Module, settings: EmaSettings) -> None:
        self.settings = settings
        self.names = [name for name, _ in module.named_parameters()]
        self.parameters = [own_part(parameter.detach()) for parameter in module.parameters()]  # the module's memory
        self.weights = [parameter.clone().float() for parameter in self.parameters]

    def decay(self, update: int) -> float:
        """Decay of update number 1, 2, ..."""
        if self.settings.decay is not None:
            return self.settings.decay
        return min(self.settings.max_decay, 1 - update**-self.settings.power)

    @torch.no_grad()
    def update(self, update: int) -> None:
        torch._foreach_lerp_(self.weights, self.parameters, 1 - self.decay(update))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the module computes with the averaged weights."""
        kept = [parameter.clone() for parameter in self.parameters]
        torch._foreach_copy_(self.parameters, self.weights)
        try:
            yield
        finally:
            torch._foreach_copy_(self.parameters, kept)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.weights))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        torch._foreach_copy_(self.weights, [state[name] for name in self.names])
