"""LIBERO's suites: their tasks, what each is called in words, and its stored start states."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unified_video_action.compat.zip_archive import read_array
from unified_video_action.env.libero.installation import package_folder


@dataclass(frozen=True)
class Task:
    """One task of a suite."""

    name: str  # LIBERO's, such as KITCHEN_SCENE8_put_both_moka_pots_on_the_stove
    instruction: str
    bddl: Path  # describes the scene and the goal
    starts: Path

    def start_states(self) -> np.ndarray:
        """(n, S) MuJoCo states: time, positions and velocities of all joints; 50 of them for every published task."""
        states = read_array(self.starts)
        if states.ndim != 2 or not np.isfinite(states).all():
            raise ValueError(f"{self.starts} holds no start states: an array of shape {states.shape}")
        return states


def load_suite(suite: str) -> tuple[Task, ...]:
    """Tasks of a suite in LIBERO's order, by which they are numbered.

    Raises:
        ValueError: no such suite; names those that there are.
    """
    folder = package_folder()
    maps = _task_map(folder)
    known = [name for name in maps if (folder / "bddl_files" / name).is_dir()]
    if suite not in known:
        raise ValueError(f"suite={suite!r}: LIBERO has {', '.join(sorted(known))}")
    tasks = []
    for name in maps[suite]:
        bddl = folder / "bddl_files" / suite / f"{name}.bddl"
        tasks.append(Task(name, instruction(bddl.read_text()), bddl, folder / f"init_files/{suite}/{name}.pruned_init"))
    return tuple(tasks)


def find_task(name: str) -> Task:
    """The task of that name, in whatever suite.

    Raises:
        ValueError: LIBERO has none.
    """
    for path in sorted((package_folder() / "bddl_files").glob(f"*/{name}.bddl")):
        return next(task for task in load_suite(path.parent.name) if task.name == name)
    raise ValueError(f"LIBERO has no task {name!r}")


def instruction(bddl: str) -> str:
    """The sentence in the text of a BDDL file."""
    found = re.search(r"\(:language\s+([^)]*)\)", bddl)
    if found is None:
        raise ValueError("a BDDL file without (:language ...)")
    return " ".join(found[1].split())


def _task_map(folder: Path) -> dict[str, list[str]]:
    """Read from its file: importing it by name would import torch, for nothing."""
    spec = importlib.util.spec_from_file_location("_libero_tasks", folder / "benchmark" / "libero_suite_task_map.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.libero_task_map
