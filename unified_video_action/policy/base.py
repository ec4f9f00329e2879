"""The interface between a policy and the rest of the house.

A simulator, a robot or a training loop needs no more than this. Frames are uint8 RGB (B, T, C, H, W), observations are
mappings from the names in `shape_meta` to histories of `horizon.history` frames or states, oldest first; actions come
back in the units of the data.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unified_video_action.model.diffusion import Generators
from unified_video_action.model.task_modes import TaskMode
from unified_video_action.spec import Horizon

Observation = Mapping[str, Any]


@dataclass(frozen=True)
class ObservationSpec:
    """Which observations the policy reads, by the names that the data and the simulator give them."""

    main: str  # camera whose future is predicted
    wrist: str | None = None  # second camera
    low_dim: tuple[str, ...] = ()  # proprioceptive inputs, concatenated in this order
    low_dim_steps: int = 0  # states given of each: the history's frames, or 1 for the newest only
    predicted: tuple[str, ...] = ()  # states that are predicted at the steps of the actions

    @property
    def cameras(self) -> tuple[str, ...]:
        return (self.main,) if self.wrist is None else (self.main, self.wrist)


class BasePolicy(nn.Module, ABC):
    """A policy that trains on batches of windows and acts on histories of observations."""

    horizon: Horizon
    observations: ObservationSpec
    action_dim: int
    action_steps: int  # actions of a chunk that are executed before the next one is asked for

    @abstractmethod
    def training_draws(self, seeds: Sequence[int], modes: Sequence[TaskMode]) -> Any:
        """All randomness of a training batch, on the CPU: a pure function of the samples' seeds."""

    @abstractmethod
    def loss_weights(self, batch: Mapping[str, Any], draws: Any) -> dict[str, float]:
        """How much each loss term of the batch weighs, known before the forward pass."""

    @abstractmethod
    def forward(
        self, batch: Mapping[str, Any], draws: Any, weights: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """`loss` and its terms, each the batch's sum divided by `weights` (its own weights when None)."""

    @abstractmethod
    def predict_action(self, obs: Observation, generator: Generators = None) -> dict[str, Tensor]:
        """`action` (B, action_steps, D), to execute, and `action_pred` (B, A, D), the whole chunk."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
