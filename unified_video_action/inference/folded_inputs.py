"""The input stage while acting: everything that is the same in every plan is one table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unified_video_action.model.inputs import InputStage, spread

Affine = tuple[Tensor, Tensor]  # weight (d, c), bias (d,)


class FoldedInputs:
    """What `InputStage` computes when history is seen, and future frames and actions are masked.

    The stage mixes its streams by one linear layer, so a stream's projection and its block of that layer are one
    matrix; streams that are masked everywhere, biases and positions are one table. Chunks are projected before they
    are spread over the tokens. Weights are those at construction.
    """

    @torch.no_grad()
    def __init__(self, stage: InputStage) -> None:
        spec = self.spec = stage.spec
        self.stage, self.dtype = stage, stage.mix.weight.dtype
        blocks = iter(stage.mix.weight.double().chunk(stage.mix.in_features // stage.mix.out_features, dim=1))
        table = stage.positions().double()[0] + stage.mix.bias.double()  # (T*S, d)

        def masked(block: Tensor, token: Tensor) -> Tensor:
            return block @ token[0].double()  # (d,)

        def project(block: Tensor, layer: nn.Linear) -> Affine:
            return (block @ layer.weight.double()).to(self.dtype), (block @ layer.bias.double()).to(self.dtype)

        # In the stage's order of streams.
        table = table + masked(next(blocks), stage.masked_frame)
        if spec.wrist_output:
            table = table + masked(next(blocks), stage.masked_wrist)
        self.history = project(next(blocks), stage.history_proj)
        if spec.history_actions:
            block = next(blocks)
            self.history_actions = project(block, stage.history_action_proj)
            self.no_history_actions = masked(block, stage.masked_history_action).to(self.dtype)  # (d,)
        table = table + masked(next(blocks), stage.masked_action)
        if spec.wrist_input:
            self.wrist_history = project(next(blocks), stage.wrist_history_proj)
        if spec.proprio_dim:
            self.proprio = project(next(blocks), stage.proprio_proj)
        assert next(blocks, None) is None, "a stream of the input stage was left out"
        self.table = table.to(self.dtype)
        if spec.text_dim:
            self.no_text = (stage.masked_text + stage.text_position)[0].clone()  # (text_tokens, d)

    @torch.no_grad()
    def instruction(self, text: Tensor) -> Tensor:
        """An instruction's feature (text_dim,) as tokens (text_tokens, d); once per episode."""
        device = self.table.device
        with torch.autocast(device.type, enabled=False):
            return self.stage.text_proj(text.to(device, self.dtype)) + self.stage.text_position[0]

    def __call__(
        self,
        history: Tensor,
        wrist_history: Tensor | None = None,
        history_actions: Tensor | None = None,
        proprio: Tensor | None = None,
        instruction: Tensor | None = None,
    ) -> Tensor:
        """Tokens of the encoder (B, text_tokens + T*S, d); arguments as in `ModelInputs`.

        `instruction` is (B, text_tokens, d), see there.
        """
        tokens = self.spec.tokens
        x = self.table + F.linear(self.stage.history_tokens(history), *self.history)  # (B, T*S, d)
        if wrist_history is not None:
            x = x + F.linear(self.stage.history_tokens(wrist_history), *self.wrist_history)
        if history_actions is not None:
            x = x + spread(F.linear(history_actions, *self.history_actions), tokens)
        elif self.spec.history_actions:
            x = x + self.no_history_actions
        if proprio is not None:
            x = x + spread(F.linear(proprio, *self.proprio), tokens)
        return x if instruction is None else torch.cat([instruction, x], dim=1)
