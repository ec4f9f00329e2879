"""One-step distillation of the action head: a network call gives what the teacher's sampler makes of the same noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unified_video_action.model.losses import LossTerm
from unified_video_action.model.samplers import Sampler
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.policy.base import Share
from unified_video_action.policy.build import load_policy
from unified_video_action.policy.config import UVAConfig
from unified_video_action.policy.uva import UnifiedVideoActionPolicy


@dataclass(frozen=True)
class DistilledConfig(UVAConfig):
    teacher: str | None = None  # checkpoint folder of the same configuration; read in training alone
    teacher_sampler: str = "ddim10"  # what is to be had in one step

    def __post_init__(self) -> None:
        super().__post_init__()
        Sampler.parse(self.teacher_sampler)


class DistilledPolicy(UnifiedVideoActionPolicy):
    """A UVA whose action network alone goes on learning, from its teacher (beyond the paper).

    Raises:
        ValueError: the head predicts noise, from which one step cannot say the data; no teacher, or one with another
            normaliser, when it is trained.
    """

    CONFIG = DistilledConfig

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        if self.model.action_head.config.prediction == "epsilon":
            raise ValueError("model.action_head.prediction=epsilon cannot be distilled to one step; others can")
        self.model.requires_grad_(False)
        self.model.action_head.net.requires_grad_(True)

    @cached_property
    def _teacher(self) -> tuple[UnifiedVideoActionPolicy]:
        """In a tuple, so that it is not part of what is trained and saved."""
        if self.config.teacher is None:
            raise ValueError("policy.teacher is not set: give the checkpoint folder that init_from has, too")
        teacher = load_policy(self.config.teacher, device=self.device)
        if teacher.normalizer.to_json() != self.normalizer.to_json():
            raise ValueError("the teacher's numbers have other units than the student's: set init_normalizer=true")
        return (teacher,)

    def prepare(self, batch: dict[str, Any], share: Share) -> dict[str, Any]:
        """Draw noise; every sample is of the mode policy, whatever modes the weights can do."""
        return self.with_modes(batch, [TASK_MODES["policy"]] * len(batch["seed"]))

    def loss_weights(self, batch: Mapping[str, Any]) -> dict[str, float]:
        if not self.training:
            return super().loss_weights(batch)
        return {"action": float(batch["corruption"]["action_noise"][..., 0].numel())}

    def loss_terms(self, batch: Mapping[str, Any]) -> dict[str, LossTerm]:
        """In training the squared distance of one step's result from the teacher's, over the rows of all chunks; what
        is measured in between are the losses of any UVA."""
        noise, head = batch["corruption"]["action_noise"], self.model.action_head  # (B, K, rows, C)
        if noise.is_meta:  # the operations of a step are counted
            cond, wanted = noise.new_empty(len(noise), noise.shape[2], head.net.cond_embed.in_features), noise
        elif self.training:
            cond, wanted = self._taught(batch, noise)
        else:
            return super().loss_terms(batch)
        last = torch.full(noise.shape[:-1], head.diffusion.steps - 1, device=noise.device)
        made = head.diffusion.x0(head.net(noise, last, cond.unsqueeze(1)).float(), noise, last)
        return {"action": LossTerm.of((made - wanted).square().mean(-1), torch.ones(noise.shape[:-1]).to(noise))}

    @torch.no_grad()
    def _taught(self, batch: Mapping[str, Any], noise: Tensor) -> tuple[Tensor, Tensor]:
        """The conditions (B, rows, c), and what the teacher makes of each noise, (B, K, rows, C)."""
        (teacher,), (samples, count) = self._teacher, noise.shape[:2]
        model = teacher.model
        inputs = teacher.transform.training_inputs(batch)
        z = model.joint_latent(inputs, model.shown(inputs, TASK_MODES["policy"]))
        sampler, rows = Sampler.parse(self.config.teacher_sampler), noise.flatten(0, 2).unsqueeze(0)
        chunks = model.action_head.sample_chunk(z, rows, sampler)  # (B * K, steps, row_dim)
        return model.action_head.conditions(z), chunks.reshape(samples, count, *noise.shape[2:])
