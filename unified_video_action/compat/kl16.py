"""Tensor names of kl-f16: the LDM code's (MAR's `kl16.ckpt`, `vae_model.*` of published checkpoints) and diffusers'."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

LEVELS = 5  # resolutions, coarsest last in LDM's numbering of both directions

# LDM pattern -> diffusers name. `{up}` is the level counted from the coarsest, as diffusers counts its decoder.
RULES = (
    (r"encoder\.down\.(\d)\.block\.(\d)\.(.+)", "encoder.down_blocks.{0}.resnets.{1}.{2}"),
    (r"encoder\.down\.(\d)\.attn\.(\d)\.(.+)", "encoder.down_blocks.{0}.attentions.{1}.{2}"),
    (r"encoder\.down\.(\d)\.downsample\.(.+)", "encoder.down_blocks.{0}.downsamplers.0.{1}"),
    (r"decoder\.up\.(\d)\.block\.(\d)\.(.+)", "decoder.up_blocks.{up}.resnets.{1}.{2}"),
    (r"decoder\.up\.(\d)\.upsample\.(.+)", "decoder.up_blocks.{up}.upsamplers.0.{1}"),
    (r"(encoder|decoder)\.mid\.block_1\.(.+)", "{0}.mid_block.resnets.0.{1}"),
    (r"(encoder|decoder)\.mid\.block_2\.(.+)", "{0}.mid_block.resnets.1.{1}"),
    (r"(encoder|decoder)\.mid\.attn_1\.(.+)", "{0}.mid_block.attentions.0.{1}"),
    (r"(encoder|decoder)\.norm_out\.(.+)", "{0}.conv_norm_out.{1}"),
)
LEAVES = {"nin_shortcut": "conv_shortcut"}
ATTENTION_LEAVES = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def diffusers_name(name: str) -> str:
    """LDM tensor name -> diffusers tensor name."""
    for pattern, template in RULES:
        if match := re.fullmatch(pattern, name):
            *head, leaf = match.groups()
            table = ATTENTION_LEAVES if ".attn" in name else LEAVES
            module, dot, rest = leaf.partition(".")
            renamed = table.get(module, module) + dot + rest
            up = LEVELS - 1 - int(head[0]) if head[0].isdigit() else None
            return template.format(*head, renamed, up=up)
    return name


def is_ldm(names: Mapping[str, Tensor]) -> bool:
    return any(".down." in name or ".mid.block_" in name for name in names)


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under LDM names -> the same under diffusers names; 1x1 convolutions of attentions become matrices."""
    renamed = {}
    for name, tensor in state.items():
        target = diffusers_name(name)
        is_projection = ".attentions." in target and tensor.ndim == 4
        renamed[target] = tensor[:, :, 0, 0] if is_projection else tensor
    return renamed


def to_ldm(state: Mapping[str, Tensor], ldm_names: list[str]) -> dict[str, Tensor]:
    """The inverse of `to_diffusers`, for the LDM names listed."""
    renamed = {}
    for name in ldm_names:
        tensor = state[diffusers_name(name)]
        is_projection = ".attn" in name and tensor.ndim == 2
        renamed[name] = tensor[:, :, None, None] if is_projection else tensor
    return renamed
