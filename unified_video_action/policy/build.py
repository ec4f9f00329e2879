"""Policies from configurations and from checkpoint folders."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from unified_video_action.compat.checkpoint_files import verify
from unified_video_action.compat.tensors import load_exactly, read_safetensors, weights_exist
from unified_video_action.dataset.build import predicted_states
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.instantiate import build_dataclass, instantiate
from unified_video_action.model.config import ModelConfig
from unified_video_action.model.uva import UVA
from unified_video_action.policy.base import ObservationSpec
from unified_video_action.policy.config import PolicyConfig
from unified_video_action.policy.unified_video_action_policy import UnifiedVideoActionPolicy
from unified_video_action.spec import Horizon, LatentShape, ModelSpec
from unified_video_action.text.clip import ClipText
from unified_video_action.untrusted import read_checkpoint_config
from unified_video_action.vae.base import FrameCodec

log = logging.getLogger(__name__)
INSTRUCTIONS = "instructions.json"  # in a checkpoint: features of the instructions that were trained on


def observation_spec(shape_meta: Mapping[str, Any], horizon: Horizon) -> ObservationSpec:
    """Roles of the observations: the first rgb is the main view, a second one the wrist view, low_dim are inputs.

    Raises:
        ValueError: no camera, more than two, or an unknown type.
    """
    cameras = [name for name, meta in shape_meta["obs"].items() if meta["type"] == "rgb"]
    low_dim = [name for name, meta in shape_meta["obs"].items() if meta["type"] == "low_dim"]
    others = set(shape_meta["obs"]) - {*cameras, *low_dim}
    if others:
        raise ValueError(f"task.shape_meta.obs: {', '.join(sorted(others))} must have type rgb or low_dim")
    if not 1 <= len(cameras) <= 2:
        raise ValueError(f"task.shape_meta.obs: one or two rgb observations are needed, got {cameras}")
    steps = {shape_meta["obs"][name].get("steps", horizon.history) for name in low_dim}
    if len(steps) > 1:
        raise ValueError(f"task.shape_meta.obs: low_dim observations must share one number of steps, got {steps}")
    return ObservationSpec(
        cameras[0],
        cameras[1] if len(cameras) > 1 else None,
        tuple(low_dim),
        steps.pop() if steps else 0,
        predicted_states(shape_meta)[0],
    )


def model_spec(config: Mapping[str, Any], observations: ObservationSpec, latent: LatentShape) -> ModelSpec:
    """Sizes of the model's inputs and outputs that a configuration asks for."""
    task = config["task"]
    meta = task["shape_meta"]
    return ModelSpec(
        horizon=build_dataclass(Horizon, task["horizon"], "task.horizon"),
        latent=latent,
        action_dim=int(meta["action"]["shape"][0]),
        patch_size=config["model"].get("patch_size", 1),
        history_actions=meta["action"].get("history", False),
        wrist_input=observations.wrist is not None,
        wrist_output=observations.wrist is not None and meta["obs"][observations.wrist].get("predict", True),
        proprio_dim=sum(int(meta["obs"][name]["shape"][0]) for name in observations.low_dim),
        proprio_steps=observations.low_dim_steps,
        proprio_output_dim=predicted_states(meta)[1],
        text_dim=meta.get("text_dim", 0),
        auxiliary_dim=meta.get("auxiliary_dim", 0),
    )


def build_policy(
    config: DictConfig | Mapping[str, Any],
    normalizer: Normalizer,
    codec: FrameCodec | None = None,
    text: ClipText | None = None,
) -> UnifiedVideoActionPolicy:
    """Build an untrained policy.

    Args:
        config: with task.shape_meta, task.horizon, model, vae and policy.
        normalizer: fitted on the training data.
        codec, text: already built; otherwise `config.vae` and `config.text` are.

    Raises:
        ValueError: a value that does not fit, named by its place.
        FileNotFoundError: codec weights that are not there.
    """
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True)
    horizon = build_dataclass(Horizon, config["task"]["horizon"], "task.horizon")
    observations = observation_spec(config["task"]["shape_meta"], horizon)
    model_config = build_dataclass(ModelConfig, config["model"], "model")
    policy_config = build_dataclass(PolicyConfig, config["policy"], "policy")
    codec = codec or instantiate(config["vae"], FrameCodec, "vae")
    if text is None and config.get("text"):
        text = instantiate(config["text"], ClipText, "text")
    model = UVA(model_spec(config, observations, codec.latent_shape), model_config)
    quotas = config.get("training", {}).get("mode_mix", {}).get("quotas")
    trained = None if quotas is None else [name for name, share in quotas.items() if share > 0]
    return UnifiedVideoActionPolicy(model, codec, normalizer, observations, policy_config, text, trained)


def load_policy(
    folder: str | Path, weights: str = "ema", device: str | torch.device = "cpu"
) -> UnifiedVideoActionPolicy:
    """Load a policy from a checkpoint folder, ready to act.

    Args:
        folder: with config.yaml, normalizer.json and `<weights>.safetensors`, which may be in pieces and in half
            precision; `codec.safetensors`, where present, replaces the codec's own weights, and `instructions.json`
            holds the features of known instructions.
        weights: "ema" or "model".

    Raises:
        FileNotFoundError: a file is missing. ValueError: weights that do not fit the configuration.
    """
    folder = Path(folder)
    if weights not in ("ema", "model"):
        raise ValueError(f"weights must be ema or model, got {weights!r}")
    config = read_checkpoint_config(folder)
    path = folder / f"{weights}.safetensors"
    there = {"normalizer.json": (folder / "normalizer.json").is_file(), path.name: weights_exist(path)}
    for name, exists in there.items():
        if not exists:
            raise FileNotFoundError(f"checkpoint {folder}: {name} is missing")
    verify(folder, weights)
    if (folder / "codec.safetensors").is_file():
        config["vae"]["weights"] = str(folder / "codec.safetensors")
    normalizer = Normalizer.from_json((folder / "normalizer.json").read_text())
    policy = build_policy(config, normalizer)
    known = folder / INSTRUCTIONS
    if known.is_file() and policy.text is not None:
        policy.text.remember(known.read_text(), str(known))
    load_exactly(policy.model, read_safetensors(path), str(path))
    log.info("loaded %s weights of %s", weights, folder)
    return policy.to(device).eval()
