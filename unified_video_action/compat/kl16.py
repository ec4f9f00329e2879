"""Tensor names of kl-f16: the LDM code's (MAR's `kl16.ckpt`, `vae_model.*` of published checkpoints) and diffusers'."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from unified_video_action.compat.tensors import unwrapped

log = logging.getLogger(__name__)
STAGE = "first_stage_model."  # in front of the codec's names in a whole latent diffusion model
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
            module, dot, rest = leaf.partition(".")
            renamed = (ATTENTION_LEAVES if ".attn" in name else LEAVES).get(module, module) + dot + rest
            up = LEVELS - 1 - int(head[0]) if head[0].isdigit() else None
            return template.format(*head, renamed, up=up)
    return name


def is_ldm(names: Iterable[str]) -> bool:
    return any(name.startswith(("encoder.down.", "decoder.up.", "encoder.mid.block_")) for name in names)


def find(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The codec's tensors in what a checkpoint holds: MAR's (`model`), latent diffusion's (`state_dict`), or alone.

    Of latent diffusion, whose checkpoint may be of a whole model, losses and what is not its first stage are left out.
    Names may be diffusers' as well; the result is empty if there is nothing under the names of either.
    """
    kept = next((content[key] for key in ("model", "state_dict") if key in content), content)
    if not isinstance(kept, dict) or not all(isinstance(tensor, Tensor) for tensor in kept.values()):
        return {}
    state = unwrapped(kept, source)
    inner = {name.removeprefix(STAGE): tensor for name, tensor in state.items() if name.startswith(STAGE)}
    found = {name: tensor for name, tensor in (inner or state).items() if not name.startswith("loss.")}
    if not any(name.startswith("encoder.") for name in found):
        return {}
    if left := len(state) - len(found):
        log.info("%s: %d tensors are not of the codec and are left out", source, left)
    return found


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under LDM names -> the same under diffusers names; 1x1 convolutions of attentions become matrices."""
    renamed = {diffusers_name(name): tensor for name, tensor in state.items()}
    return {
        name: tensor[:, :, 0, 0] if ".attentions." in name and tensor.ndim == 4 else tensor
        for name, tensor in renamed.items()
    }
