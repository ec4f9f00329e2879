"""Tensor names of the paper's published code, and ours.

The published model has the same parts as ours under other names; no tensor changes shape. Every checkpoint with
proprioception has `proprioception_image_proj_cond`, though only models with a wrist camera use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unified_video_action.compat.tensors import require_same, shapes_of, unwrapped
from unified_video_action.messages import few

# Published module or parameter -> ours.
PARTS = {
    "fake_latent_x": "mar.inputs.masked_frames.0",
    "fake_latent_wrist_x": "mar.inputs.masked_frames.1",
    "fake_latent_history_action": "mar.inputs.masked_history_action",
    "fake_action_latent": "mar.inputs.masked_action",
    "fake_latent": "mar.inputs.masked_text",
    "temporal_pos_embed": "mar.inputs.temporal_position",
    "spatial_pos_embed": "mar.inputs.spatial_position",
    "text_pos_embed": "mar.inputs.text_position",
    "z_proj": "mar.inputs.future_projs.0",
    "z_proj_cond": "mar.inputs.history_projs.0",
    "z_proj_wrist": "mar.inputs.future_projs.1",
    "proprioception_image_proj_cond": "mar.inputs.history_projs.1",
    "proprioception_proj_cond": "mar.inputs.proprio_proj",
    "history_action_proj_cond": "mar.inputs.history_action_proj",
    "action_proj_cond": "mar.inputs.action_proj",
    "text_proj_cond": "mar.inputs.text_proj",
    "proj_cond_x_layer": "mar.inputs.mix",
    "z_proj_ln": "mar.input_norm",
    "encoder_blocks": "mar.encoder.blocks",
    "encoder_norm": "mar.encoder.norm",
    "decoder_embed": "mar.decoder_embed",
    "decoder_temporal_pos_embed": "mar.decoder_temporal_position",
    "decoder_spatial_pos_embed": "mar.decoder_spatial_position",
    "decoder_text_pos_embed": "mar.decoder_text_position",
    "decoder_blocks": "mar.decoder.blocks",
    "decoder_norm": "mar.decoder.norm",
    "diffusion_temporal_embed": "mar.latent_temporal_position",
    "diffusion_spatial_embed": "mar.latent_spatial_position",
}
HEADS = {
    "diffloss": "video_heads.0",
    "diffloss_wrist": "video_heads.1",
    "diffactloss": "action_head",
    "diffproploss": "proprio_head",
}
# Inside a head; `#` stands for the number of a block.
HEAD_PARTS = {
    "net.time_embed": "net.time_embed",
    "net.cond_embed": "net.cond_embed",
    "net.input_proj": "net.input_proj",
    "net.res_blocks.#.in_ln": "net.blocks.#.norm",
    "net.res_blocks.#.mlp": "net.blocks.#.mlp",
    "net.res_blocks.#.adaLN_modulation": "net.blocks.#.modulation",
    "net.final_layer.linear": "net.final.linear",
    "net.final_layer.adaLN_modulation": "net.final.modulation",
    "conv.0": "trunk.conv",
    "fc": "trunk.fc",
    "interpolate": "trunk.interpolate",
    "refine": "trunk.refine",
}
UNUSED = ("proprioception_image_proj_cond.weight", "proprioception_image_proj_cond.bias")  # without a wrist camera
PREFIXES = {  # of a policy's tensors -> the part that they are of
    "model.": "model",
    "vae_model.": "codec",  # kl-f16 under LDM names
    "text_model.": "text",  # CLIP; only models with language
    "normalizer.params_dict.": "normalizer",  # `<field>.scale`, `<field>.input_stats.min`, ...
}


def _pattern(name: str) -> re.Pattern[str]:
    """Of a name or the beginning of one, in which a block's number stands for `#`."""
    return re.compile(re.escape(name).replace(r"\#", r"(?P<number>\d+)") + r"(?P<rest>\..+)?")


PAIRS = [*PARTS.items(), *((f"{a}.{c}", f"{b}.{d}") for a, b in HEADS.items() for c, d in HEAD_PARTS.items())]
TO_OURS = [(_pattern(published), ours) for published, ours in PAIRS]
TO_REFERENCE = [(_pattern(ours), published) for published, ours in PAIRS]


def _translate(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rules:
        if match := pattern.fullmatch(name):
            found = match.groupdict(default="")
            return target.replace("#", found.get("number", "")) + found["rest"]
    return None


def our_name(name: str) -> str | None:
    """Published tensor name -> ours; None when there is no counterpart."""
    return _translate(name, TO_OURS)


def reference_name(name: str) -> str | None:
    """Our tensor name -> the published one; None when there is no counterpart."""
    return _translate(name, TO_REFERENCE)


def to_ours(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str) -> dict[str, Tensor]:
    """Published tensors -> ours.

    Args:
        state: tensors of the published model, without the prefix `model.`.
        expected: names and shapes of our model. source: the file, for messages.

    Raises:
        ValueError: tensors that are missing, extra or misshapen; it has their published names.
    """
    if without := [name for name in expected if reference_name(name) is None]:
        raise ValueError(f"the published code has no counterpart of {few(without)}")
    wanted = {reference_name(name): tuple(shape) for name, shape in expected.items()}
    used = {name: tensor for name, tensor in state.items() if name in wanted or name not in UNUSED}
    require_same(wanted, shapes_of(used), source)
    return {our_name(name): tensor for name, tensor in used.items()}


def split_policy(state: Any, source: str) -> dict[str, dict[str, Tensor]]:
    """A published policy's tensors by part (see PREFIXES), without prefixes. Raises ValueError for others."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PREFIXES.values()}
    unknown = []
    for name, tensor in unwrapped(state, source).items():
        if prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
            parts[PREFIXES[prefix]][name.removeprefix(prefix)] = tensor
        elif name != "_dummy_variable":
            unknown.append(name)
    if unknown:
        raise ValueError(f"{source}: tensors of no known part: {few(unknown)}")
    if not parts["model"]:
        raise ValueError(f"{source}: no tensors of the model (none starts with 'model.')")
    return parts


@dataclass(frozen=True)
class Transfer:
    """What of a file a new model can start from."""

    tensors: dict[str, Tensor]  # by our names
    left: list[str]  # names in the file that fit nowhere
    kept: list[str]  # our tensors that keep their values


def matching(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str) -> Transfer:
    """The tensors whose name and shape fit our model, to start a new one from.

    For MAR's `model_ema`, where stage 1 starts, and for the weights of the published stage 1, where stage 2 does.

    Raises:
        ValueError: nothing fits.
    """
    fitting = {
        our_name(name): tensor
        for name, tensor in state.items()
        if tuple(expected.get(our_name(name), ("none",))) == tuple(tensor.shape)
    }
    if not fitting:
        raise ValueError(f"{source}: no tensor fits the model by name and shape")
    left = [name for name in state if our_name(name) not in fitting]
    return Transfer(fitting, left, [name for name in expected if name not in fitting])
