"""Datasets from configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unified_video_action.dataset.mixture import Wanted
from unified_video_action.dataset.transforms import HAND_STATES
from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.instantiate import build_dataclass, instantiate
from unified_video_action.poses import KINDS, HandSpec
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
    """Build `task.dataset`; `task.horizon`, `task.shape_meta` and `task.hand` decide what its samples hold.

    With `task.hand`, the sources give the poses of a hand, of which the task's states and actions are made.

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
    hand = _hand(task, low_dim)
    asked = {
        "horizon": horizon,
        "wanted": Wanted(
            tuple(name for name, entry in meta["obs"].items() if entry["type"] == "rgb"),
            tuple(low_dim) if hand is None else HAND_STATES,
            int(meta["action"]["shape"][0]),
            bool(meta.get("auxiliary_dim", 0)),
        ),
        "low_dim_steps": max(steps, default=None),
        "history_actions": meta["action"].get("history", False),
        "future_low_dim": predicted_states(meta)[0],
    }
    if hand is not None:
        asked["hand"] = hand
    _check_predicted(meta)
    dataset = instantiate(task["dataset"], WindowDataset, "task.dataset", **asked)
    _check_shapes(dataset, meta)
    return dataset


def predicted_states(shape_meta: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """Low-dim observations that are predicted at the steps of the actions, and how many numbers they are.

    They are those that say `predict: true`. Where none says so, `proprio_output_dim` decides: all of them, or none
    where it is 0 or absent; it stands even if it is not the width of all, as in checkpoints of the paper's code.

    Raises:
        ValueError: `proprio_output_dim` differs from what is marked.
    """
    widths = {n: int(entry["shape"][0]) for n, entry in shape_meta["obs"].items() if entry["type"] == "low_dim"}
    marked = tuple(name for name in widths if shape_meta["obs"][name].get("predict", False))
    given = shape_meta.get("proprio_output_dim", 0)
    if not marked:
        return (tuple(widths) if given else ()), given
    width = sum(widths[name] for name in marked)
    if given and given != width:
        raise ValueError(
            f"task.shape_meta.proprio_output_dim={given}, but {', '.join(marked)}, which say predict, have {width} "
            "numbers; leave it out"
        )
    return marked, width


def _hand(task: Mapping[str, Any], low_dim: Sequence[str]) -> HandSpec | None:
    """`task.hand`, which makes all states of the task. Raises ValueError where they do not fit together."""
    if not task.get("hand"):
        return None
    hand = build_dataclass(HandSpec, task["hand"], "task.hand")
    if list(hand.states) != list(low_dim):
        raise ValueError(
            f"task.hand.states makes {', '.join(hand.states) or 'nothing'}, but the low_dim observations of "
            f"task.shape_meta are {', '.join(low_dim) or 'none'}; name the same ones, in the same order"
        )
    for name, kind in hand.states.items():
        if (KINDS[kind],) != tuple(task["shape_meta"]["obs"][name]["shape"]):
            raise ValueError(f"task.shape_meta.obs.{name}: a hand's {kind} has shape [{KINDS[kind]}]")
    return hand


def open_frames(dataset: WindowDataset, settings: DataSettings, codec: FrameCodec, progress: bool = True) -> None:
    """Open the caches that `settings` ask for, building what they lack, and let the dataset read from them."""
    if settings.frames == "latents":
        cache = dataset.latents(codec, settings.cache_dir, settings.n_views, progress=progress)
        dataset.use_latents(cache)
    else:
        dataset.use_frames(settings.cache_dir, cached=settings.frames == "cached", progress=progress)


def _check_predicted(meta: Mapping[str, Any]) -> None:
    names, width = predicted_states(meta)
    available = sum(int(meta["obs"][name]["shape"][0]) for name in names)
    if width != available:
        raise ValueError(
            f"task.shape_meta.proprio_output_dim={width}, but the states have {available} numbers; mark those that are "
            "to be predicted with predict: true"
        )


def _check_shapes(dataset: WindowDataset, meta: Mapping[str, Any]) -> None:
    found = {f"obs.{name}": (3, *size) for name, size in dataset.frame_shapes().items()}
    found |= {f"obs.{name}": (width,) for name, width in dataset.low_dim_dims().items()}
    found |= {"action": (dataset.action_dim,), "auxiliary_dim": dataset.auxiliary_dim}
    wanted = {f"obs.{name}": tuple(entry["shape"]) for name, entry in meta["obs"].items()}
    wanted |= {"action": tuple(meta["action"]["shape"]), "auxiliary_dim": meta.get("auxiliary_dim", 0)}
    for name in wanted.keys() | found.keys():
        if wanted.get(name) != found.get(name):
            raise ValueError(f"task.shape_meta.{name} is {wanted.get(name)}, but the data has {found.get(name)}")
