"""What the heads learn from, and how much each row of a loss counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unified_video_action.model.masking import TrainingCorruption
from unified_video_action.spec import ModelSpec


@dataclass
class Targets:
    """What the heads learn from, and which of it counts."""

    frame_valid: Tensor  # (B, F) bool
    action_valid: Tensor  # (B, A) bool
    proprio: Tensor | None = None  # (B, A, proprio_output_dim)
    auxiliary: Tensor | None = None  # (B, H+F, auxiliary_dim)
    has_proprio: Tensor | None = None  # (B,) bool; None: all have
    has_auxiliary: Tensor | None = None  # (B,) bool; None: all have


class LossTerm(NamedTuple):
    """A loss as a weighted sum, so that processes and micro-batches add up before anything is divided."""

    total: Tensor
    weight: Tensor

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor) -> LossTerm:
        return cls((rows * weights).sum(), weights.sum())


def loss_weights(spec: ModelSpec, targets: Targets, corruption: TrainingCorruption) -> dict[str, Tensor]:
    """Weight of every row of each loss term, known before the forward pass.

    video (V, K, R); action, proprio (B, K, A); auxiliary (B, H+F).
    """
    weights = {}
    if len(corruption.video_samples):
        padded = ~targets.frame_valid.repeat_interleave(spec.tokens_per_frame, dim=1)
        at = corruption.video_samples.unsqueeze(1), corruption.video_rows
        counted = (corruption.masked & ~padded)[at]  # (V, R)
        weights["video"] = counted.unsqueeze(1).expand(corruption.video_t[:, 0].shape).float()
    if len(corruption.action_samples):
        valid = targets.action_valid[corruption.action_samples].float()
        weights["action"] = valid.unsqueeze(1).expand(-1, corruption.action_t.shape[1], -1)
    if spec.proprio_output_dim:
        valid = targets.action_valid.float()
        if targets.has_proprio is not None:
            valid = valid * targets.has_proprio.unsqueeze(1)
        weights["proprio"] = valid.unsqueeze(1).expand(-1, corruption.proprio_t.shape[1], -1)
    if spec.auxiliary_dim:
        history = targets.frame_valid.new_ones(len(targets.frame_valid), spec.horizon.history)
        weights["auxiliary"] = torch.cat([history, targets.frame_valid], dim=1).float()
        if targets.has_auxiliary is not None:
            weights["auxiliary"] = weights["auxiliary"] * targets.has_auxiliary.unsqueeze(1)
    return weights
