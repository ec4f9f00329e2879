"""Datasets from configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unified_video_action.dataset.mixture import Wanted
from unified_video_action.dataset.transforms import END_EFFECTOR_STATES
from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.instantiate import build_dataclass, instantiate
from unified_video_action.poses import KINDS, EndEffectorSpec
from unified_video_action.spec import TaskSpec

FRAMES = ("latents", "cached", "decoded")


@dataclass(frozen=True)
class DataSettings:
    """How frames get from the stores to the model; the configuration's `data`."""

    frames: str = "latents"  # latents: encoded once; cached: decoded once; decoded: on every read (slow, no disk space)
    cache_dir: str | None = None  # folder of the caches; null: beside each store
    n_views: int = 1  # latents only: the frames as they are and n_views - 1 augmented views

    def __post_init__(self) -> None:
        if self.frames not in FRAMES:
            raise ValueError(f"data.frames={self.frames!r}: expected one of {', '.join(FRAMES)}")
        if not isinstance(self.n_views, int) or self.n_views < 1:
            raise ValueError(f"data.n_views={self.n_views!r}: expected a positive integer")


def build_dataset(config: DictConfig | Mapping[str, Any]) -> WindowDataset:
    """Build `task.dataset`; `task.horizon`, `task.shape_meta` and `task.end_effector` decide what its samples hold.

    With `task.end_effector`, the sources give poses of an end effector; the task's states and actions are made of them.

    Raises:
        ValueError: an unknown key, or data whose shapes differ from task.shape_meta.
        FileNotFoundError: no data where `task.dataset.paths` says.
    """
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True)
    task = config["task"]
    spec = TaskSpec.parse(task)
    end_effector = {"end_effector": _end_effector(task, spec)} if task.get("end_effector") else {}
    low_dim = END_EFFECTOR_STATES if end_effector else tuple(spec.states)
    width = sum(spec.states[name] for name in spec.predicted_states)
    if width != spec.predicted_state_dim:
        raise ValueError(
            f"task.shape_meta.proprio_output_dim={spec.predicted_state_dim}, but the states have {width} numbers; mark "
            "those that are to be predicted with predict: true"
        )
    dataset = instantiate(
        task["dataset"],
        WindowDataset,
        "task.dataset",
        horizon=spec.horizon,
        wanted=Wanted(spec.camera_names, low_dim, spec.action_dim, bool(spec.auxiliary_dim)),
        low_dim_steps=spec.state_steps or None,
        history_actions=spec.history_actions,
        future_low_dim=spec.predicted_states,
        **end_effector,
    )
    found, asked = dataset.shapes(), {f"obs.{camera.name}": (3, *camera.size) for camera in spec.cameras}
    asked |= {f"obs.{name}": (width,) for name, width in spec.states.items()}
    asked |= {"action": (spec.action_dim,), "auxiliary_dim": spec.auxiliary_dim}
    for name in sorted(asked.keys() | found.keys()):
        if asked.get(name) != found.get(name):
            raise ValueError(f"task.shape_meta.{name} is {asked.get(name)}, but the data has {found.get(name)}")
    return dataset


def _end_effector(task: Mapping[str, Any], spec: TaskSpec) -> EndEffectorSpec:
    """`task.end_effector`, which makes all states of the task. Raises ValueError where they do not fit together."""
    end_effector = build_dataclass(EndEffectorSpec, task["end_effector"], "task.end_effector")
    if list(end_effector.states) != list(spec.states):
        raise ValueError(
            f"task.end_effector.states makes {', '.join(end_effector.states) or 'nothing'}, but the low_dim "
            f"observations of task.shape_meta are {', '.join(spec.states) or 'none'}; name the same ones in the same "
            "order"
        )
    for name, kind in end_effector.states.items():
        if KINDS[kind] != spec.states[name]:
            raise ValueError(f"task.shape_meta.obs.{name}: an end effector's {kind} has shape [{KINDS[kind]}]")
    return end_effector
