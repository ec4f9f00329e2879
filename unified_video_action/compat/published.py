"""Checkpoints of the paper's published code: what is in one, and our settings for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor

from unified_video_action.compat.reference_names import split_policy
from unified_video_action.compat.tensors import shapes_of
from unified_video_action.messages import few
from unified_video_action.spec import Horizon, LatentShape, ModelSpec

PAPER_SPEC = ModelSpec(Horizon(), LatentShape(16, 16, 16), action_dim=2)  # what MAR-B becomes the start of
HEADS_BY_WIDTH = {768: 12, 1024: 16, 1280: 16}  # attention heads of mar_base, mar_large, mar_huge


@dataclass(frozen=True)
class Published:
    """A policy of the published code."""

    settings: dict[str, Any]  # its configuration, as plain data; interpolations are strings
    spec: ModelSpec
    network: dict[str, Any]  # fields of our `model` configuration
    weights: dict[str, dict[str, Tensor]]  # "ema" and, where saved, "model"; published names without prefix
    codec: dict[str, Tensor]  # kl-f16 under LDM names
    normalizer: dict[str, dict[str, Tensor]]  # field -> scale, offset, min, max, mean, std

    @property
    def learns_actions(self) -> bool:
        return any(name.startswith("diffactloss.") for name in self.weights["ema"])


def read_published(content: Mapping[str, Any], source: str) -> Published:
    """Sort out what `load_checkpoint` read.

    Raises:
        ValueError: parts are missing or of no known kind.
    """
    for key in ("cfg", "state_dicts"):
        if not isinstance(content.get(key), dict):
            raise ValueError(f"{source}: not a checkpoint of the published code, it has no {key!r}")
    states = content["state_dicts"]
    if "ema_model" not in states:
        raise ValueError(
            f"{source}: it has no averaged weights (state_dicts.ema_model), only {few(states)}: it was trained without "
            "EMA, or is not the file that the trainer wrote"
        )
    kept = {"ema": "ema_model", "model": "model"}
    parts = {ours: split_policy(states[theirs], source) for ours, theirs in kept.items() if theirs in states}
    ema, policy = parts["ema"], _policy_settings(content["cfg"], source)
    shapes = shapes_of(ema["model"])
    return Published(
        settings=content["cfg"],
        spec=infer_spec(
            shapes,
            different_history_freq=bool(policy.get("different_history_freq")),
            shift_action=bool(policy.get("shift_action", True)),
        ),
        network=infer_network(shapes),
        weights={name: part["model"] for name, part in parts.items()},
        codec=ema["codec"],
        normalizer=_normalizer_fields(ema["normalizer"]),
    )


def _normalizer_fields(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`<field>.scale`, `<field>.input_stats.min`, ... by field and quantity, but images: they are not normalised."""
    fields: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        field, _, key = name.rpartition(".")
        field = field.removesuffix(".input_stats")
        if "image" not in field and "rgb" not in field:
            fields.setdefault(field, {})[key] = tensor.reshape(-1)
    return fields


def task_settings(published: Published, source: str) -> dict[str, Any]:
    """Our `task` configuration for a published policy, without data and simulator: shape_meta and horizon.

    Raises:
        ValueError: the checkpoint's own shape_meta does not have the cameras or states that its tensors need.
    """
    spec = published.spec
    theirs = published.settings.get("task", {}).get("shape_meta", {}).get("obs", {})
    rgb = [name for name, meta in theirs.items() if meta.get("type") == "rgb"]
    rgb.sort(key=lambda name: "wrist" in name or "in_hand" in name)  # the main view first
    cameras = rgb[: spec.views]
    if len(cameras) < spec.views:
        raise ValueError(f"{source}: its weights take {spec.views} cameras, its shape_meta has {rgb}")
    obs = {name: {"shape": [int(side) for side in theirs[name]["shape"]], "type": "rgb"} for name in cameras}
    if len(cameras) > 1:
        obs[cameras[1]]["predict"] = spec.predicted_views > 1
    if spec.proprio_dim:
        states = {name: meta["shape"][0] for name, meta in theirs.items() if meta.get("type") == "low_dim"}
        if sum(states.values()) != spec.proprio_dim:
            raise ValueError(
                f"{source}: its weights take a state of {spec.proprio_dim} values, its shape_meta {states}"
            )
        obs |= {name: {"shape": [n], "type": "low_dim", "steps": spec.proprio_steps} for name, n in states.items()}
    return {
        "shape_meta": {
            "obs": obs,
            "action": {"shape": [spec.action_dim], "history": spec.history_actions},
            "proprio_output_dim": spec.proprio_output_dim,
            "text_dim": spec.text_dim,
            "auxiliary_dim": 0,
        },
        "horizon": asdict(spec.horizon),
    }


def asking_settings(published: Published, source: str) -> dict[str, Any]:
    """Our `policy` configuration: how the published policy is asked for actions and frames."""
    policy = _policy_settings(published.settings, source)
    sampling = policy.get("autoregressive_model_params", {})
    return {
        "action_steps": int(policy.get("n_action_steps", 8)),
        "sampler": f"ancestral{int(sampling.get('act_diff_testing_steps', 100))}",
        "video_sampler": f"ancestral{int(sampling.get('num_sampling_steps', 100))}",
        "temperature": float(sampling.get("temperature", 0.95)),
        "iterations": int(sampling.get("num_iter", 1)),
    }


def _policy_settings(settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    policy = settings.get("model", {}).get("policy")
    if not isinstance(policy, dict):
        raise ValueError(f"{source}: its configuration has no model.policy")
    return policy


def _size_of(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int, default: int | None = None) -> int:
    """Side of a tensor, or `default` where there is none of that name. Raises ValueError where there is neither."""
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
    size = partial(_size_of, shapes)
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
    dim = _size_of(shapes, "encoder_norm.weight", 0)
    if dim not in HEADS_BY_WIDTH:
        raise ValueError(f"model width {dim}: expected one of {', '.join(map(str, HEADS_BY_WIDTH))}")

    def depth(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})

    def head(name: str) -> dict[str, int]:
        return {
            "width": _size_of(shapes, f"{name}.net.input_proj.weight", 0),
            "depth": depth(f"{name}.net.res_blocks."),
        }

    return {
        "transformer": {
            "dim": dim,
            "encoder_depth": depth("encoder_blocks."),
            "decoder_depth": depth("decoder_blocks."),
            "heads": HEADS_BY_WIDTH[dim],
            "mlp_ratio": _size_of(shapes, "encoder_blocks.0.mlp.fc1.weight", 0) / dim,
        },
        "video_head": head("diffloss"),
        "action_head": head("diffactloss" if "diffactloss.net.input_proj.weight" in shapes else "diffloss"),
    }
