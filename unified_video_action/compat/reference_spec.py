"""Sizes of a published model, read off its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unified_video_action.spec import Horizon, LatentShape, ModelSpec

HEADS_BY_WIDTH = {768: 12, 1024: 16, 1280: 16}  # attention heads of mar_base, mar_large, mar_huge


def size_of(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int, default: int | None = None) -> int:
    """Side of a tensor; `default` where there is no such tensor.

    Raises:
        ValueError: no such tensor and no default, or it has no such side.
    """
    if name not in shapes:
        if default is None:
            raise ValueError(f"not a published model: it has no tensor {name}")
        return default
    if axis >= len(shapes[name]) or not 0 < shapes[name][axis] < 2**31:
        raise ValueError(f"not a published model: its {name} has the shape {tuple(shapes[name])}")
    return shapes[name][axis]


def infer_spec(
    shapes: Mapping[str, tuple[int, ...]], *, different_history_freq: bool = False, shift_action: bool = True
) -> ModelSpec:
    """Sizes of a published model.

    Args:
        shapes: published names (without `model.`) to shapes.
        different_history_freq: the option of the published configuration; with it, proprioception is one state per
            history frame instead of one per action step. Tensors do not show it.
        shift_action: the option of the published configuration; without it, the chunk starts one step after now.

    Raises:
        ValueError: tensors that no published model lacks are missing, or the input layer's width makes no sense.
    """

    def size(name: str, axis: int, default: int | None = None) -> int:
        return size_of(shapes, name, axis, default)

    dim, cells = size("fake_latent_x", 1), size("spatial_pos_embed", 1)
    side = math.isqrt(cells)
    if side * side != cells:
        raise ValueError(f"spatial_pos_embed has {cells} cells, which is not a square grid")
    frames = size("temporal_pos_embed", 1)
    actions = size("diffactloss.interpolate.weight", 0, default=4 * frames)  # stage 1 has no action head
    wrist_output = "z_proj_wrist.weight" in shapes
    history_actions = "history_action_proj_cond.weight" in shapes
    proprio_dim = size("proprioception_proj_cond.weight", 1, default=0)
    streams, rest = divmod(size("proj_cond_x_layer.weight", 1), dim)
    extra = streams - (3 + wrist_output + history_actions + bool(proprio_dim))
    if rest or extra not in (0, 1) or wrist_output > extra:
        raise ValueError(f"proj_cond_x_layer takes {streams} inputs of {dim}; that fits no published model")
    return ModelSpec(
        horizon=Horizon(frames, frames, actions // frames, actions, 0 if shift_action else 1),
        latent=LatentShape(size("z_proj.weight", 1), side, side),
        action_dim=size("action_proj_cond.weight", 1),
        history_actions=history_actions,
        views=1 + extra,
        predicted_views=1 + wrist_output,
        proprio_dim=proprio_dim,
        proprio_steps=0 if not proprio_dim else frames if different_history_freq else actions,
        proprio_output_dim=size("diffproploss.net.input_proj.weight", 1, default=0),
        text_dim=size("text_proj_cond.weight", 1, default=0),
        text_tokens=size("text_pos_embed", 1, default=64),
    )


def infer_network(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The network's sizes, of a published model or of MAR itself, as fields of our `model` configuration.

    Raises:
        ValueError: no such model, or a width that none has, so that the number of attention heads is unknown.
    """
    dim = size_of(shapes, "encoder_norm.weight", 0)
    if dim not in HEADS_BY_WIDTH:
        raise ValueError(f"model width {dim}: expected one of {', '.join(map(str, HEADS_BY_WIDTH))}")

    def depth(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})

    def head(name: str) -> dict[str, int]:
        return {"width": size_of(shapes, f"{name}.net.input_proj.weight", 0), "depth": depth(f"{name}.net.res_blocks.")}

    return {
        "transformer": {
            "dim": dim,
            "encoder_depth": depth("encoder_blocks."),
            "decoder_depth": depth("decoder_blocks."),
            "heads": HEADS_BY_WIDTH[dim],
            "mlp_ratio": size_of(shapes, "encoder_blocks.0.mlp.fc1.weight", 0) / dim,
        },
        "video_head": head("diffloss"),
        "action_head": head("diffactloss" if "diffactloss.net.input_proj.weight" in shapes else "diffloss"),
    }
