"""Datasets from configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unified_video_action.dataset.mixture import Wanted
from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.instantiate import build_dataclass, instantiate
from unified_video_action.spec import Horizon
from unified_video_action.vae.base import FrameCodec

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
    """Build `task.dataset`; `task.horizon` and `task.shape_meta` decide what its samples hold.

    Raises:
        ValueError: an unknown key, or data whose shapes differ from task.shape_meta.
        FileNotFoundError: no data where `task.dataset.paths` says.
    """
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True)
    task = config["task"]
    meta = task["shape_meta"]
    horizon = build_dataclass(Horizon, task["horizon"], "task.horizon")
    low_dim = [name for name, entry in meta["obs"].items() if entry["type"] == "low_dim"]
    steps = {meta["obs"][name].get("steps", horizon.history) for name in low_dim}
    asked = {
        "horizon": horizon,
        "wanted": Wanted(
            tuple(name for name, entry in meta["obs"].items() if entry["type"] == "rgb"),
            tuple(low_dim),
            int(meta["action"]["shape"][0]),
            bool(meta.get("auxiliary_dim", 0)),
        ),
        "low_dim_steps": max(steps, default=None),
        "history_actions": meta["action"].get("history", False),
        "future_low_dim": bool(meta.get("proprio_output_dim", 0)),
    }
    dataset = instantiate(task["dataset"], "task.dataset", **asked)
    _check_shapes(dataset, meta)
    return dataset


def open_frames(dataset: WindowDataset, settings: DataSettings, codec: FrameCodec, progress: bool = True) -> None:
    """Open the caches that `settings` ask for, building what they lack, and let the dataset read from them."""
    if settings.frames == "latents":
        cache = dataset.latents(codec, settings.cache_dir, settings.n_views, progress=progress)
        dataset.use_latents(cache)
    else:
        dataset.use_frames(settings.cache_dir, cached=settings.frames == "cached", progress=progress)


def _check_shapes(dataset: WindowDataset, meta: Mapping[str, Any]) -> None:
    found = {f"obs.{name}": (3, *size) for name, size in dataset.frame_shapes().items()}
    found |= {f"obs.{name}": (width,) for name, width in dataset.low_dim_dims().items()}
    found |= {"action": (dataset.action_dim,), "auxiliary_dim": dataset.auxiliary_dim}
    wanted = {f"obs.{name}": tuple(entry["shape"]) for name, entry in meta["obs"].items()}
    wanted |= {"action": tuple(meta["action"]["shape"]), "auxiliary_dim": meta.get("auxiliary_dim", 0)}
    for name in wanted.keys() | found.keys():
        if wanted.get(name) != found.get(name):
            raise ValueError(f"task.shape_meta.{name} is {wanted.get(name)}, but the data has {found.get(name)}")
