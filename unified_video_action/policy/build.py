"""Policies from configurations and from checkpoint folders."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from unified_video_action.compat.checkpoint_files import upgrade_tensors, verify
from unified_video_action.compat.tensors import load_exactly, read_safetensors, weights_exist
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.instantiate import resolve_class
from unified_video_action.policy.base import BasePolicy
from unified_video_action.spec import TaskSpec
from unified_video_action.untrusted import local_checkpoint, read_checkpoint_config

log = logging.getLogger(__name__)


def policy_class(config: Mapping[str, Any]) -> type[BasePolicy]:
    """The class that `policy._target_` names. Raises ValueError when it names none."""
    return resolve_class(config["policy"].get("_target_"), BasePolicy, "policy")


def build_policy(
    config: DictConfig | Mapping[str, Any], normalizer: Normalizer, encoders: Mapping[str, Any] | None = None
) -> BasePolicy:
    """Build an untrained policy; its class builds the encoders that are not given.

    Raises:
        ValueError: a value that does not fit, named by its key.
        FileNotFoundError: weights of an encoder that are not there.
    """
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True)
    return policy_class(config).from_config(config, TaskSpec.parse(config["task"]), normalizer, encoders)


def load_policy(
    folder: str | Path,
    weights: str = "ema",
    device: str | torch.device = "cpu",
    settings: Mapping[str, Any] | None = None,
) -> BasePolicy:
    """Load the "ema" or the "model" weights of a checkpoint, ready to act: of a folder, or of hf://USER/NAME[@REVISION].

    The folder has config.yaml, normalizer.json and `<weights>.safetensors`, which may be in pieces and half precision;
    `codec.safetensors`, where present, replaces the codec's own weights. `settings` stand in for `policy` of the
    configuration.

    Raises:
        FileNotFoundError: a file is missing. ValueError: weights that do not fit the configuration, or a policy that
            has none.
    """
    if weights not in ("ema", "model"):
        raise ValueError(f"weights must be ema or model, got {weights!r}")
    folder = local_checkpoint(folder, weights)
    config = read_checkpoint_config(folder)
    config |= {} if settings is None else {"policy": dict(settings)}
    if not policy_class(config).STORED:  # a stranger's checkpoint must not choose whom observations are sent to
        raise ValueError(f"checkpoint {folder}: {policy_class(config).__name__} has no weights to be in a checkpoint")
    path, normalizer = folder / f"{weights}.safetensors", folder / "normalizer.json"
    for file, exists in ((normalizer, normalizer.is_file()), (path, weights_exist(path))):
        if not exists:
            raise FileNotFoundError(f"checkpoint {folder}: {file.name} is missing")
    verify(folder, weights)
    if config["policy"].get("pretrained"):  # every weight follows: none is downloaded first
        config["policy"] = {**config["policy"], "pretrained": False}
    if (folder / "codec.safetensors").is_file():
        config["vae"]["weights"] = str(folder / "codec.safetensors")
    try:
        policy = build_policy(config, Normalizer.from_json(normalizer.read_text()))
    except ValueError as error:
        raise ValueError(f"checkpoint {folder}: {error}") from error
    policy.read_files(folder)
    load_exactly(policy.model, upgrade_tensors(read_safetensors(path)), str(path))
    log.info("loaded %s weights of %s", weights, folder)
    return policy.to(device).eval()
