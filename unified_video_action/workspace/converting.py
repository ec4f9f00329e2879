"""Checkpoints of other projects, made into ours: `scripts/convert_checkpoint.py`."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from unified_video_action.compat import kl16
from unified_video_action.compat.published import (
    PAPER_SPEC,
    Published,
    asking_settings,
    infer_network,
    read_published,
    task_settings,
)
from unified_video_action.compat.reference_names import matching, to_ours
from unified_video_action.compat.tensors import require_finite, require_same, shapes_of, unwrapped, write_safetensors
from unified_video_action.compat.torch_archive import load_checkpoint
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.files import written
from unified_video_action.instantiate import build_dataclass
from unified_video_action.messages import few
from unified_video_action.model.config import ModelConfig
from unified_video_action.model.uva import UVA
from unified_video_action.policy.uva_transform import model_spec
from unified_video_action.spec import ModelSpec, TaskSpec
from unified_video_action.vae.kl import build_network
from unified_video_action.workspace.checkpoint import written_whole
from unified_video_action.workspace.commands import read_config

CONFIG = "uva_pusht"  # the paper's recipe, whose data and simulator a PushT policy keeps

log = logging.getLogger(__name__)


def convert(source: Path, target: Path, to_lerobot: bool = False) -> None:
    """Convert `source` into `target`.

    Raises:
        FileNotFoundError, FileExistsError: about `source`, `target`.
        ValueError: `source` is damaged, refused, or of no known kind.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; name another output, or remove it")
    if to_lerobot or (source / "config.json").is_file():
        try:
            from lerobot_policy_uva import checkpoints
        except ModuleNotFoundError as error:
            raise ValueError(f"{error.name} is not installed: pip install plugins/lerobot_policy_uva") from error
        (checkpoints.to_lerobot if to_lerobot else checkpoints.from_lerobot)(source, target)
        log.info("wrote %s", target)
        return
    content, name = load_checkpoint(source), str(source)
    if not isinstance(content, dict):
        raise ValueError(f"{source}: holds a {type(content).__name__}, not a checkpoint")
    if "state_dicts" in content:
        try:
            published = read_published(content, name)
            config = configuration(published, name) if published.learns_actions else {}
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{source}: its cfg is not of the published code ({repr(error)[:200]})") from error
        with written_whole(target) as folder:
            if published.learns_actions:
                write_policy(folder, published, config, name)
            else:
                write_start(folder, published.weights["ema"], published.spec, published.network, name)
    elif "model_ema" in content:
        tensors = unwrapped(content["model_ema"], name)
        with written_whole(target) as folder:
            write_start(folder, tensors, PAPER_SPEC, infer_network(shapes_of(tensors)), name)
    elif not kl16.is_ldm(codec := kl16.find(content, name)):
        raise ValueError(f"{source}: {unknown(content)}")
    elif target.suffix != ".safetensors":
        raise ValueError(f"{source} is a frame codec: name an output that ends with .safetensors, not {target}")
    else:
        with written(target) as partial:
            write_codec(partial, codec, name)
    log.info("wrote %s", target)


def unknown(content: dict[str, Any]) -> str:
    """What is said of a file of no known kind."""
    said = f"no known kind of checkpoint; it holds {few(content)}"
    key = next((key for key in ("state_dict", "model") if isinstance(content.get(key), dict)), "")
    tensors = content[key] if key else content
    if not any(isinstance(tensor, Tensor) for tensor in tensors.values()):
        return said
    if any("encoder_blocks." in str(name)[:100] for name in tensors):
        said += f". It has weights alone{f' ({key})' if key else ''}: give the file that the trainer wrote, which "
        return said + "for a published policy has cfg and state_dicts.ema_model, and for MAR model_ema"
    return said + (f", with {few(tensors)} in {key}" if key else "")


def save(tensors: dict[str, Tensor], path: Path, source: str) -> None:
    require_finite(tensors, source)
    write_safetensors(path, tensors)


def model_shapes(spec: ModelSpec, model: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our model's tensors, without making them."""
    with torch.device("meta"):
        return shapes_of(UVA(spec, build_dataclass(ModelConfig, model, "model")).state_dict())


def write_codec(path: Path, state: dict[str, Tensor], source: str) -> None:
    converted = kl16.to_diffusers(state)
    with torch.device("meta"):
        expected = shapes_of(build_network().state_dict())
    require_same(expected, shapes_of(converted), source)
    save(converted, path, source)


def write_start(folder: Path, state: dict[str, Tensor], spec: ModelSpec, network: dict[str, Any], source: str) -> None:
    """The averaged weights that a new model of these sizes can start from."""
    found = matching(state, model_shapes(spec, network), source)
    save(found.tensors, folder / "ema.safetensors", source)
    missing = sorted({".".join(name.split(".")[: 2 if name.startswith("mar.") else 1]) for name in found.kept})
    log.info("%d tensors taken; not in this model: %s", len(found.tensors), few(found.left, 20))
    log.info("start a run with init_from=OUT 'init_allow_missing=[%s]'", ",".join(missing))


def write_policy(folder: Path, published: Published, config: dict[str, Any], source: str) -> None:
    """A checkpoint folder."""
    expected, fields = model_shapes(published.spec, config["model"]), published.normalizer
    for name, state in published.weights.items():
        require_finite(state, source)  # by their published names
        save(to_ours(state, expected, f"{source} ({name})"), folder / f"{name}.safetensors", source)
    write_codec(folder / "codec.safetensors", published.codec, f"{source} (vae_model)")
    if fields and "action" not in fields:
        raise ValueError(f"{source}: its normaliser has no field for actions, only {few(fields)}")
    meta = config["task"]["shape_meta"]
    states = {name: entry["shape"][0] for name, entry in meta["obs"].items() if entry["type"] == "low_dim"}
    identity = Normalizer.identity({"action": meta["action"]["shape"][0], **states})
    (folder / "normalizer.json").write_text((Normalizer(fields) if fields else identity).to_json())
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))


def configuration(published: Published, source: str) -> dict[str, Any]:
    """Our configuration for a published policy; one of the same sizes as PushT's keeps its data and simulator."""
    name = str(published.settings.get("task", {}).get("name"))[:60]
    name = name if re.fullmatch(r"\w+", name) else "policy"
    composed = read_config(CONFIG, [f"name=uva_{name}", "output_dir=outputs/${name}"])
    config = OmegaConf.to_container(OmegaConf.merge(composed, {"model": published.network}))
    config["policy"] |= asking_settings(published, source)
    theirs, ours = task_settings(published, source), config["task"]["shape_meta"]["obs"]
    spec = model_spec(TaskSpec.parse(config["task"]), published.spec.latent, config["model"]["patch_size"])
    if spec != published.spec or theirs["shape_meta"]["obs"] != ours:
        log.info("%s is not %s: its config.yaml names no data and no simulator", name, CONFIG)
        config["task"] = theirs
    return config
