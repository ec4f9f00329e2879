"""What a checkpoint reads and says, from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unified_video_action.compat.checkpoint_files import read_json
from unified_video_action.instantiate import build_dataclass
from unified_video_action.policy.build import INSTRUCTIONS, observation_spec
from unified_video_action.policy.config import PolicyConfig
from unified_video_action.poses import HandSpec
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.rotations import POSE_ACTION
from unified_video_action.spec import Horizon
from unified_video_action.untrusted import CONFIG, read_checkpoint_config


def describe(folder: Path) -> PolicyDescription:
    """The description of a checkpoint.

    `task.hand` of its configuration says that it moves a hand, and how (see HandSpec); `task.step_seconds` is the time
    between two steps of its data.

    Raises:
        FileNotFoundError: no such folder, or no configuration in it.
        ValueError: a configuration that does not fit together, named by its place.
    """
    config = _config(folder)
    task = config["task"]
    meta = task["shape_meta"]
    horizon = build_dataclass(Horizon, task["horizon"], "task.horizon")
    roles = observation_spec(meta, horizon)
    entries = {name: _entry(name, meta["obs"][name], horizon) for name in (*roles.cameras, *roles.low_dim)}
    dim = int(meta["action"]["shape"][0])
    return PolicyDescription(
        name=str(config.get("name") or folder.resolve().name),
        observations=entries,
        horizon=horizon,
        action_dim=dim,
        action_steps=build_dataclass(PolicyConfig, config["policy"], "policy").action_steps,
        follows_text=bool(meta.get("text_dim", 0)),
        instructions=_instructions(folder),
        step_seconds=_seconds(task.get("step_seconds")),
        hand=_hand(task.get("hand"), entries, dim),
        continues=True,
    )


def ranges(folder: Path, description: PolicyDescription) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Lowest and highest value (d,) of each state in the data it was trained on, where its normaliser knows them.

    Raises:
        FileNotFoundError: no normaliser. ValueError: it is damaged, or one of another task.
    """
    path = folder / "normalizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {folder}: {path.name} is missing; copy the whole folder")
    fields = {name: _section(read_json(path), path, name) for name in ("action", *_states(description))}
    known = {name: field for name, field in fields.items() if name != "action" and {"min", "max"} <= field.keys()}
    return {name: (np.array(field["min"]), np.array(field["max"])) for name, field in known.items()}


def _states(description: PolicyDescription) -> list[str]:
    return [name for name, entry in description.observations.items() if entry.kind == "low_dim"]


def _config(folder: Path) -> dict[str, Any]:
    config = read_checkpoint_config(folder)
    for place in ("task.shape_meta.obs", "task.shape_meta.action.shape", "task.horizon", "policy", "model", "vae"):
        _section(config, folder / CONFIG, *place.split("."))
    return config


def _section(data: Any, file: Path, *names: str) -> Any:
    """What lies below these names in a file's data. Raises ValueError where there is nothing."""
    for depth, name in enumerate(names, 1):
        if not isinstance(data, Mapping) or name not in data:
            raise ValueError(f"{file}: {'.'.join(names[:depth])} is missing; is it that of another project or task?")
        data = data[name]
    return data


def _entry(name: str, meta: Mapping[str, Any], horizon: Horizon) -> ObservationEntry:
    shape = tuple(int(side) for side in meta["shape"])
    if meta["type"] == "rgb":
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(f"task.shape_meta.obs.{name}.shape={list(shape)}: expected [3, height, width]")
        return ObservationEntry("rgb", (*shape[1:], 3), horizon.history)
    return ObservationEntry("low_dim", shape, int(meta.get("steps", horizon.history)))


def _instructions(folder: Path) -> tuple[str, ...]:
    path = folder / INSTRUCTIONS
    return tuple(_section(read_json(path), path, "features")) if path.is_file() else ()


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 < value < 60:
        raise ValueError(f"task.step_seconds={value!r}: expected seconds between two steps, such as 0.05")
    return float(value)


def _hand(block: Mapping[str, Any] | None, entries: Mapping[str, ObservationEntry], dim: int) -> HandSpec | None:
    if block is None:
        return None
    hand = build_dataclass(HandSpec, block, "task.hand")
    strangers = [name for name in hand.states if name not in entries]
    if strangers:
        raise ValueError(f"task.hand.states: {', '.join(strangers)} is not in task.shape_meta.obs")
    if dim != POSE_ACTION:
        raise ValueError(f"task.hand: actions of {dim} numbers are no poses of a hand, which have {POSE_ACTION}")
    return hand
