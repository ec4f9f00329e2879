"""MAR: masked autoregressive encoder-decoder, tokens -> joint latent Z (paper, section III-B; MAR, NeurIPS 2024).

All tokens pass through both stacks; nothing is dropped, so masking only changes what a token says.
"""

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unified_video_action.model.config import TransformerConfig
from unified_video_action.model.inputs import InputStage, ModelInputs, Visibility, join_positions
from unified_video_action.spec import ModelSpec


class Stack(nn.Module):
    """Pre-norm transformer blocks and a final norm."""

    def __init__(self, depth: int, config: TransformerConfig) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        options = dict(
            mlp_ratio=config.mlp_ratio,
            qkv_bias=True,
            proj_drop=config.dropout,
            attn_drop=config.attention_dropout,
            norm_layer=norm,
        )
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, **options) for _ in range(depth))
        for block in self.blocks:
            block.attn.fused_attn = config.fused_attention
        self.norm = norm(config.dim)
        self.gradient_checkpointing = config.gradient_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)


class MAR(nn.Module):
    """Input stage, encoder and decoder."""

    def __init__(self, spec: ModelSpec, config: TransformerConfig, noise: bool = False) -> None:
        super().__init__()
        frames, cells, dim = spec.horizon.future, spec.tokens_per_frame, config.dim

        def positions(length: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(1, length, dim) * 0.02)

        self.text_tokens = spec.text_tokens if spec.text_dim else 0
        self.inputs = InputStage(spec, dim, noise)
        self.input_norm = nn.LayerNorm(dim, eps=1e-6)
        self.encoder = Stack(config.encoder_depth, config)
        self.decoder_embed = nn.Linear(dim, dim)
        self.decoder_temporal_position, self.decoder_spatial_position = positions(frames), positions(cells)
        if self.text_tokens:
            self.decoder_text_position = positions(self.text_tokens)
        self.decoder = Stack(config.decoder_depth, config)
        self.latent_temporal_position, self.latent_spatial_position = positions(frames), positions(cells)
        self.apply(_initialise)

    def forward(self, inputs: ModelInputs, seen: Visibility) -> Tensor:
        """Joint latent (B, T*S, d), one row per future video token."""
        x = self.inputs(inputs, seen)  # (B, L, d), the instruction's tokens in front
        x = self.encoder(self.input_norm(x))
        position = join_positions(self.decoder_temporal_position, self.decoder_spatial_position)  # (1, T*S, d)
        if self.text_tokens:
            position = torch.cat([self.decoder_text_position, position], dim=1)  # (1, L, d)
        x = self.decoder(self.decoder_embed(x) + position)  # (B, L, d)
        x = x[:, self.text_tokens :]  # (B, T*S, d)
        return x + join_positions(self.latent_temporal_position, self.latent_spatial_position)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
