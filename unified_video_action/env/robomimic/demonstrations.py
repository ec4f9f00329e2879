"""Demonstrations in robomimic's HDF5 layout: data/demo_<i>/{states, actions, rewards, dones, obs/<name>}."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unified_video_action.env.system_libraries import explain_missing_libraries
from unified_video_action.files import written

with explain_missing_libraries():
    import h5py


@dataclass(frozen=True)
class Demonstration:
    """An episode of T steps: row i of every array belongs to the moment just before action i."""

    model: str  # XML of the simulator's model
    states: np.ndarray  # (T, S) float64: time, positions and velocities of all joints
    actions: np.ndarray  # (T, 7) float64: position, axis-angle, gripper; or steps
    obs: Mapping[str, np.ndarray]  # name -> (T, ...)
    success: np.ndarray  # (T,) bool: after action i


class DemonstrationWriter:
    """Adds demonstrations to a file."""

    def __init__(self, file: h5py.File, arguments: Mapping[str, Any]) -> None:
        self._data = file.create_group("data")
        self._data.attrs["env_args"] = json.dumps(arguments, indent=4)
        self._data.attrs["total"] = 0

    def __len__(self) -> int:
        return len(self._data)

    def append(self, demonstration: Demonstration) -> None:
        """Frames are compressed, each by itself, so that any of them is quick to read."""
        group = self._data.create_group(f"demo_{len(self)}")
        group.attrs["num_samples"] = len(demonstration.actions)
        group.attrs["model_file"] = demonstration.model
        group["states"], group["actions"] = demonstration.states, demonstration.actions
        group["rewards"] = demonstration.success.astype(np.float64)
        group["dones"] = np.append(demonstration.success[:-1], True).astype(np.int64)
        for name, values in demonstration.obs.items():
            frames = {"chunks": (1, *values.shape[1:]), "compression": "gzip", "compression_opts": 1}
            group.create_dataset(f"obs/{name}", data=values, **(frames if values.dtype == np.uint8 else {}))
        self._data.attrs["total"] += len(demonstration.actions)


@contextmanager
def new_file(output: Path, arguments: Mapping[str, Any]) -> Iterator[DemonstrationWriter]:
    """A file that appears as `output` when all of it is written. Raises FileExistsError where it exists, ValueError
    where nothing was written."""
    if output.exists():
        raise FileExistsError(f"{output} exists already; choose another --output, or remove it first")
    with written(output) as partial, h5py.File(partial, "w") as file:
        writer = DemonstrationWriter(file, arguments)
        yield writer
        if not len(writer):
            raise ValueError(f"{output}: not one demonstration is left to write")
