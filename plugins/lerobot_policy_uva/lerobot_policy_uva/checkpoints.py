"""A checkpoint folder of this project as a policy of LeRobot, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from lerobot.configs.types import FeatureType, PolicyFeature
from torch import Tensor

from lerobot_policy_uva.configuration_uva import UvaConfig
from lerobot_policy_uva.modeling_uva import UvaPolicy
from lerobot_policy_uva.processor_uva import make_uva_pre_post_processors
from unified_video_action.compat.tensors import write_safetensors
from unified_video_action.policy.base import INSTRUCTIONS
from unified_video_action.policy.build import load_policy
from unified_video_action.untrusted import CONFIG, read_checkpoint_config
from unified_video_action.workspace.checkpoint import written_whole


def to_lerobot(checkpoint: Path, output: Path) -> None:
    """Write the averaged weights of a checkpoint as a folder for `--policy.path`.

    A lone camera is observation.image, several are observation.images.NAME; likewise observation.state for a lone
    state.

    Raises:
        ValueError: a checkpoint of another policy than UVA.
    """
    ours = load_policy(checkpoint)
    settings = read_checkpoint_config(checkpoint)
    settings["vae"]["weights"] = "random"
    task = ours.task
    cameras = {name: f"observation.images.{name}" for name in task.camera_names}
    states = {name: f"observation.{name}" for name in task.states}
    if len(cameras) == 1:
        cameras = dict.fromkeys(cameras, "observation.image")
    if len(states) == 1:
        states = dict.fromkeys(states, "observation.state")
    inputs = {cameras[each.name]: PolicyFeature(FeatureType.VISUAL, (3, *each.size)) for each in task.cameras}
    inputs |= {states[name]: PolicyFeature(FeatureType.STATE, (width,)) for name, width in task.states.items()}
    known = checkpoint / INSTRUCTIONS
    config = UvaConfig(
        device="cpu",
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (task.action_dim,))},
        names={feature: name for name, feature in (cameras | states).items()},
        settings=settings,
        normalizer=json.loads(ours.normalizer.to_json()),
        instructions=sorted(json.loads(known.read_text())["features"]) if known.is_file() else [],
    )
    policy = UvaPolicy(config)
    policy.uva.model.load_state_dict(ours.model.state_dict())
    policy.codec.load_state_dict(ours.codec.state_dict())
    if config.instructions:
        policy.text_features.copy_(ours.encode_text(config.instructions))
    processors = make_uva_pre_post_processors(config)
    with written_whole(output) as folder:
        policy.save_pretrained(folder)
        for processor, name in zip(processors, ("policy_preprocessor", "policy_postprocessor")):
            processor.save_pretrained(folder, config_filename=f"{name}.json")


def from_lerobot(source: Path, output: Path) -> None:
    """Write a policy that LeRobot has saved as a checkpoint folder; what it acts with becomes its averaged weights."""
    policy = UvaPolicy.from_pretrained(source)
    weights: dict[str, Tensor] = (policy.average or policy.uva.model).state_dict()
    texts: dict[str, Any] = {CONFIG: yaml.safe_dump(policy.config.settings, sort_keys=False)}
    texts["normalizer.json"] = json.dumps(policy.config.normalizer, indent=2)
    if policy.config.instructions:
        texts[INSTRUCTIONS] = policy.uva.text.to_json(policy.config.instructions)
    with written_whole(output) as folder:
        write_safetensors(folder / "ema.safetensors", weights)
        policy.codec.save(folder / "codec.safetensors")
        for name, text in texts.items():
            (folder / name).write_text(text)
