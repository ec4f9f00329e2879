"""What an evaluation is prepared from: the checkpoint's configuration, the folder of its run, a device."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from unified_video_action.compat.tensors import digest
from unified_video_action.env_runner import processes
from unified_video_action.env_runner.runner import EnvRunner
from unified_video_action.instantiate import instantiate
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.policy.unified_video_action_policy import UnifiedVideoActionPolicy

METRICS = "metrics.json"  # what scripts/export_checkpoint.py writes into a checkpoint
CHANGEABLE = ("task.env.", "task.env_runner.")  # what may differ from training; the policy is as it was trained


def read_config(checkpoint: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Configuration of a checkpoint, with `key=value` overrides of its simulator and its runner.

    Raises:
        FileNotFoundError: no such folder, or no config.yaml in it.
        ValueError: no simulator is configured, or an override is malformed or concerns anything else.
    """
    path = checkpoint / "config.yaml"
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"checkpoint {checkpoint}: no such folder")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {checkpoint}: config.yaml is missing")
    try:
        config = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.startswith(CHANGEABLE):
            raise ValueError(
                f"--set {override}: expected KEY=VALUE with a key that starts with {' or '.join(CHANGEABLE)}"
            )
    config = OmegaConf.to_container(OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides))), resolve=True)
    for key in ("env", "env_runner"):
        if not (config.get("task") or {}).get(key):
            raise ValueError(f"{path}: task.{key} is not set, so there is no simulator to evaluate in")
    return config


def run_folder(checkpoint: Path) -> Path:
    """Folder of the training run that a checkpoint lies in; of a lone checkpoint, the folder it lies in.

    A shipped checkpoint, which says how it was made and lies in no run, has a folder in `outputs`.
    """
    parent = checkpoint.resolve().parent
    run = parent.parent if parent.name == "checkpoints" else parent
    shipped = (checkpoint / METRICS).is_file() and not (run / "metrics.jsonl").is_file()
    return Path("outputs") / "shipped" / checkpoint.resolve().name if shipped else run


def build_runner(config: Mapping[str, Any], **changes: int | None) -> EnvRunner:
    """The runner of a configuration's task, with those `changes` of its arguments that are not None."""
    settings = config["task"]["env_runner"] | {key: value for key, value in changes.items() if value is not None}
    return instantiate(settings, "task.env_runner", env_config=config["task"]["env"])


def require_new(output: Path) -> None:
    """Raise FileExistsError where `output`, which the first process writes, is anything but an empty or no folder."""
    if processes.place()[0] > 0:
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output folder {output} exists already; choose another with --output, or remove it")


def weights_digest(policy: UnifiedVideoActionPolicy) -> str:
    """A short name of a policy's weights, by which its results can be told from those of others."""
    return digest(policy.model.state_dict())


def learns_frames(config: Mapping[str, Any]) -> bool:
    """Whether the training recipe taught the policy to imagine frames; True where there is no recipe."""
    mix = (config.get("training") or {}).get("mode_mix") or {}
    quotas = mix.get("quotas") or dict.fromkeys(TASK_MODES, 1.0)
    return any(share > 0 and TASK_MODES[name].learns_frames for name, share in quotas.items())


def choose_device(name: str | None) -> str:
    """The device of that name; without one, CUDA where there is a GPU (each process has its own), else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if name is None:
        gpu = "cuda" if processes.place()[1] == 1 else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        return gpu if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return name
