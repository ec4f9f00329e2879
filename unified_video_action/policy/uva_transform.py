"""From data to what the UVA model sees, and back: latents, normalised states and actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.model.inputs import ModelInputs
from unified_video_action.model.losses import Targets
from unified_video_action.noise import Generators
from unified_video_action.policy.base import Observation, action_origin, normalized_states, require_observations
from unified_video_action.policy.config import UVAConfig
from unified_video_action.spec import LatentShape, ModelSpec, TaskSpec
from unified_video_action.vae.base import FrameCodec, Moments

CHANGE = "change_"  # normaliser's field that scales changes of a camera's latents


class UVATransform:
    """Both directions of every conversion; codec and normaliser are on the model's device."""

    def __init__(self, task: TaskSpec, codec: FrameCodec, normalizer: Normalizer, config: UVAConfig) -> None:
        self.task, self.codec, self.normalizer, self.config = task, codec, normalizer, config

    @property
    def device(self) -> torch.device:
        return self.codec.scale.device

    # -- what the model sees -------------------------------------------------------------------------------------------

    def observed(self, obs: Observation, generator: Generators = None) -> ModelInputs:
        """History frames, states and instruction. Raises ValueError for one that is missing, or a history of another
        length."""
        task = self.task
        require_observations(obs, task.observations)
        views = [self.latents(obs[name], generator) for name in task.camera_names]
        inputs = ModelInputs(torch.stack(views, dim=1))  # (B, V, H, C, h, w)
        if inputs.history.shape[2] != task.horizon.history:
            raise ValueError(
                f"{task.camera_names[0]}: {inputs.history.shape[2]} frames of history given, "
                f"the policy needs {task.horizon.history}"
            )
        if task.states:
            inputs.proprio = normalized_states(task, self.normalizer, obs, self.device)  # (B, P, d)
        if task.history_actions and obs.get("history_action") is not None:
            inputs.history_actions = self.normalized_actions(obs["history_action"].to(self.device), obs)
        if task.text_dim:
            inputs.text = obs["text"].to(self.device)
        return inputs

    def training_inputs(self, batch: Mapping[str, Any]) -> ModelInputs:
        """All of them, of a batch of windows on the model's device."""
        states = batch.get("low_dim", {})
        also = {name: batch.get(name) for name in ("text", "history_action", "has_low_dim")}
        inputs = self.observed({**states, **batch["history"], **also})
        inputs.future = self.future(batch["future"], inputs.history)
        inputs.actions = self.normalized_actions(batch["action"], states)
        return inputs

    def targets(self, batch: Mapping[str, Any], with_values: bool = True) -> Targets:
        """What the heads learn from; without values only what of it counts."""
        action_valid = ~batch["action_is_pad"] & batch["has_action"].unsqueeze(1)  # (B, A)
        has = {"has_proprio": batch.get("has_low_dim"), "has_auxiliary": batch.get("has_auxiliary")}
        targets = Targets(~batch["frame_is_pad"], action_valid, **has)
        if with_values and self.task.predicted_state_dim:
            states = batch["future_low_dim"]
            targets.proprio = torch.cat([self.normalizer.normalize(name, states[name]) for name in states], dim=-1)
        if with_values and self.task.auxiliary_dim:
            targets.auxiliary = batch["auxiliary"]
        return targets

    def latents(self, frames: Tensor | Moments, generator: Generators = None) -> Tensor:
        """Frames and moments become scaled latents (B, T, C, h, w); latents pass."""
        if isinstance(frames, Moments):
            return self.codec.latents(frames, generator)
        frames = frames.to(self.device)
        return self.codec.encode(frames, generator) if frames.dtype == torch.uint8 else frames

    def future(self, views: Mapping[str, Tensor], history: Tensor, generator: Generators = None) -> Tensor:
        """Future frames or latents by camera -> (B, P, F, C, h, w), relative to the newest ones where so configured."""
        names = self.task.predicted_cameras
        latents = torch.stack([self.latents(views[name], generator) for name in names], dim=1)
        if not self.config.relative_frames:
            return latents
        return (latents - history[:, : len(names), -1:]) * self._change_scales().to(latents)

    def whole_frames(self, frames: Tensor, history: Tensor) -> Tensor:
        """The inverse of `future`: (B, P, F, C, h, w) as scaled latents."""
        if not self.config.relative_frames:
            return frames
        return frames / self._change_scales().to(frames) + history[:, : frames.shape[1], -1:]

    def _change_scales(self) -> Tensor:
        """(P, 1, 1, 1, 1): what changes of each predicted camera's latents are multiplied by."""
        names = [CHANGE + name for name in self.task.predicted_cameras]
        if lacking := [name for name in names if name not in self.normalizer]:
            raise ValueError(f"policy.relative_frames: the normaliser has no {lacking[0]}; train from scratch")
        return torch.stack([self.normalizer.scale(name) for name in names]).reshape(-1, 1, 1, 1, 1)

    # -- actions -------------------------------------------------------------------------------------------------------

    def normalized_actions(self, actions: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Actions (B, n, D) in the data's units as the model sees them."""
        return self.normalizer.normalize("action", actions - action_origin(self.config, obs, self.device))

    def actions(self, chunk: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """The inverse: (B, n, D) in the data's units."""
        return self.normalizer.unnormalize("action", chunk.float()) + action_origin(self.config, obs, self.device)


def model_spec(task: TaskSpec, latent: LatentShape, patch_size: int = 1) -> ModelSpec:
    """Sizes of the model's inputs and outputs for a task."""
    return ModelSpec(
        horizon=task.horizon,
        latent=latent,
        action_dim=task.action_dim,
        patch_size=patch_size,
        history_actions=task.history_actions,
        views=len(task.cameras),
        predicted_views=len(task.predicted_cameras),
        proprio_dim=sum(task.states.values()),
        proprio_steps=task.state_steps,
        proprio_output_dim=task.predicted_state_dim,
        text_dim=task.text_dim,
        auxiliary_dim=task.auxiliary_dim,
    )
