"""Windows without data: latents, states and actions of a small synthetic world, in the shapes that a policy trains on.

A hidden state moves smoothly. A low-rank part of the latents shows it, and the actions follow from it and its motion:
there is something to learn, and it depends on the input.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from unified_video_action.policy.uva import UnifiedVideoActionPolicy
from unified_video_action.policy.uva_transform import CHANGE

HIDDEN = 3  # values of the hidden state
INSTRUCTIONS = 8
BACKGROUND, SHOWN, NOISE = 0.3, 0.6, 0.1  # shares of the latents' variance, 1 in all
SPEED = 0.08  # most radians by which a phase of the state moves in a control step


class SyntheticWindows:
    """Endless training batches with latents in place of frames; a window is a function of its index.

    Latents have unit variance; actions and states lie within +-1 after the policy's normaliser.
    """

    def __init__(self, policy: UnifiedVideoActionPolicy, seed: int = 0) -> None:
        self.policy = policy
        self.normalizer = copy.deepcopy(policy.normalizer).cpu()  # loader processes may not touch an accelerator
        spec, task = policy.model.spec, policy.task
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        latent = (spec.latent.channels, spec.latent.height, spec.latent.width)
        self.background = {name: random(*latent) for name in task.camera_names}
        self.patterns = {name: random(HIDDEN, *latent) for name in task.camera_names}
        dims = {name: len(policy.normalizer.scale(name)) for name in ("action", *task.states, *task.predicted_states)}
        dims["auxiliary"] = spec.auxiliary_dim
        self.maps = {name: random(2 * HIDDEN, dim) / math.sqrt(2 * HIDDEN) for name, dim in dims.items()}
        self.texts, self.asked = random(INSTRUCTIONS, spec.text_dim), random(INSTRUCTIONS, spec.action_dim) / 2

    def __len__(self) -> int:
        return 2**20

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        """A batch (keys as dataset samples) of the windows of these (index, seed)."""
        spec, task, horizon = self.policy.model.spec, self.policy.task, self.policy.task.horizon
        generators = [torch.Generator().manual_seed(index) for index, _ in keys]
        uniform = torch.stack([torch.rand(2, HIDDEN, generator=each) for each in generators])  # (B, 2, K)
        phase, speed = 2 * math.pi * uniform[:, :1], SPEED * (2 * uniform[:, 1:] - 1)  # (B, 1, K)
        instruction = torch.tensor([index % INSTRUCTIONS for index, _ in keys])

        def state(offsets: tuple[int, ...]) -> Tensor:
            """The state and its motion (B, n, 2 K), of unit variance."""
            angle = phase + speed * torch.tensor(offsets)[:, None]  # (B, n, K)
            motion = angle.cos() * speed * (math.sqrt(3) / SPEED)
            return math.sqrt(2) * torch.cat([angle.sin(), motion], dim=-1)

        def latents(camera: str, offsets: tuple[int, ...]) -> Tensor:
            shown = torch.einsum("btk,kchw->btchw", state(offsets)[..., :HIDDEN], self.patterns[camera])
            noise = torch.stack([torch.randn(shown.shape[1:], generator=each) for each in generators])
            parts = math.sqrt(BACKGROUND) * self.background[camera] + math.sqrt(SHOWN / HIDDEN) * shown
            return parts + math.sqrt(NOISE) * noise  # (B, T, C, h, w)

        def values(name: str, offsets: tuple[int, ...], more: Tensor | float = 0.0) -> Tensor:
            """(B, n, D) in the data's units."""
            made = torch.tanh(state(offsets) @ self.maps[name] + more)
            return made if name == "auxiliary" else self.normalizer.unnormalize(name, made)

        low_dim = {name: values(name, horizon.history_offsets) for name in task.states}
        origin = low_dim[self.policy.config.relative_to][:, -1:] if self.policy.config.relative_to else 0.0
        asked = self.asked[instruction][:, None] if spec.text_dim else 0.0
        batch, frames = len(keys), horizon.history_offsets + horizon.future_offsets
        return {
            "history": {camera: latents(camera, horizon.history_offsets) for camera in task.camera_names},
            "future": {camera: latents(camera, horizon.future_offsets) for camera in task.camera_names},
            "action": origin + values("action", horizon.action_offsets, asked),
            "history_action": origin + values("action", horizon.history_action_offsets, asked),
            "low_dim": low_dim,
            "future_low_dim": {name: values(name, horizon.action_offsets) for name in task.predicted_states},
            "auxiliary": values("auxiliary", frames),
            "text": self.texts[instruction],
            "action_is_pad": torch.zeros(batch, horizon.actions, dtype=torch.bool),
            "frame_is_pad": torch.zeros(batch, horizon.future, dtype=torch.bool),
            "has_action": torch.ones(batch, dtype=torch.bool),
            "seed": torch.tensor([seed for _, seed in keys]),
        }


def change_fields(cameras: tuple[str, ...], offsets: tuple[int, ...]) -> dict[str, dict[str, Tensor]]:
    """Fields of a normaliser that bring changes of these windows' latents, at future offsets, to unit deviation."""
    moved = sum((SPEED * offset) ** 2 / 3 for offset in offsets) / len(offsets)
    scale = torch.ones(1) / math.sqrt(SHOWN * moved + 2 * NOISE)
    return {CHANGE + name: {"scale": scale, "offset": torch.zeros(1)} for name in cameras}
