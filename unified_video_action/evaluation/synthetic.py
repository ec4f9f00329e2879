"""Windows without data, to time training: random latents, states and actions in the shapes that a policy trains on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from unified_video_action.policy.uva import UnifiedVideoActionPolicy


class SyntheticWindows:
    """Endless training batches with latents in place of frames; a batch is a function of its indices.

    Latents have unit variance; actions and states lie within +-1 after the policy's normaliser.
    """

    def __init__(self, policy: UnifiedVideoActionPolicy) -> None:
        self.task, self.spec = policy.task, policy.model.spec
        self.normalizer = copy.deepcopy(policy.normalizer).cpu()  # loader processes may not touch an accelerator

    def __len__(self) -> int:
        return 2**20

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        """A batch (keys as dataset samples) of the windows of these (index, seed)."""
        task, spec, batch = self.task, self.spec, len(keys)
        horizon, latent = task.horizon, (spec.latent.channels, spec.latent.height, spec.latent.width)
        generator = torch.Generator().manual_seed(keys[0][0])

        def latents(steps: int) -> dict[str, Tensor]:
            return {name: torch.randn(batch, steps, *latent, generator=generator) for name in task.camera_names}

        def values(name: str, steps: int) -> Tensor:
            """(B, steps, D) in the data's units."""
            uniform = 2 * torch.rand(batch, steps, len(self.normalizer.scale(name)), generator=generator) - 1
            return self.normalizer.unnormalize(name, uniform)

        return {
            "history": latents(horizon.history),
            "future": latents(horizon.future),
            "action": values("action", horizon.actions),
            "history_action": values("action", len(horizon.history_action_offsets)),
            "low_dim": {name: values(name, horizon.history) for name in task.states},
            "future_low_dim": {name: values(name, horizon.actions) for name in task.predicted_states},
            "auxiliary": torch.randn(batch, horizon.history + horizon.future, spec.auxiliary_dim, generator=generator),
            "text": torch.randn(batch, spec.text_dim, generator=generator),
            "action_is_pad": torch.zeros(batch, horizon.actions, dtype=torch.bool),
            "frame_is_pad": torch.zeros(batch, horizon.future, dtype=torch.bool),
            "has_action": torch.ones(batch, dtype=torch.bool),
            "seed": torch.tensor([seed for _, seed in keys]),
        }
