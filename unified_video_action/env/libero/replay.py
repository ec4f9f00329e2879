"""LIBERO's published demonstrations played again with absolute actions, and seen again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from unified_video_action.env.libero.installation import Task, find_task
from unified_video_action.env.libero.scene import CAMERAS, Scene
from unified_video_action.env.system_libraries import explain_missing_libraries
from unified_video_action.files import unreadable
from unified_video_action.rotations import AXIS_ANGLE_ACTION, from_pose_actions, to_pose_actions

with explain_missing_libraries():
    import h5py

Pose = tuple[np.ndarray, np.ndarray]  # position (3,), quaternion (4,)


@dataclass(frozen=True)
class Recording:
    """One published demonstration of T steps.

    `states[t]` is what `actions[t]` was given in. (The published frames are those after it; and of every episode the
    first five steps, without a command, are left out.)
    """

    name: str
    actions: np.ndarray  # (T, 7) relative
    states: np.ndarray  # (T, S) time, positions and velocities of all joints
    fixtures: Mapping[str, Pose]  # body -> where it stood


def recorded_task(path: Path) -> Task:
    """The task that a published file is of. Raises ValueError for another file, or a task that this LIBERO does
    not have."""
    with _opened(path) as file:
        attributes = file["data"].attrs
        if "bddl_file_name" not in attributes or "problem_info" not in attributes:
            raise ValueError(f"{path}: data has no attributes bddl_file_name and problem_info, as LIBERO's files have")
        task = find_task(Path(str(attributes["bddl_file_name"])).stem)
        words = " ".join(json.loads(attributes["problem_info"])["language_instruction"].split())
    if words.strip('"').lower() != task.instruction.lower():
        raise ValueError(f"{path}: its instruction is {words!r}, that of {task.name} is {task.instruction!r}")
    return task


def recorded_names(path: Path) -> list[str]:
    """Names of a published file's demonstrations, in the order of their numbers."""
    with _opened(path) as file:
        return sorted(file["data"], key=lambda name: (len(name), name))


def read_recording(path: Path, name: str, scene: Scene) -> Recording:
    """One demonstration of a published file. Raises ValueError for what is missing, misshapen, or not relative."""
    with _opened(path) as file:
        group, where = file["data"][name], f"{path}: data/{name}"
        absent = [key for key in ("actions", "states") if key not in group]
        if absent or "model_file" not in group.attrs:
            raise ValueError(f"{where} lacks {', '.join(absent) or 'the attribute model_file'}; LIBERO's files have it")
        actions, states = group["actions"][:].astype(np.float64), group["states"][:].astype(np.float64)
        model = group.attrs["model_file"]
    if actions.ndim != 2 or actions.shape[1] != AXIS_ANGLE_ACTION or len(actions) != len(states) or not len(actions):
        raise ValueError(f"{where}: actions {actions.shape} and states {states.shape}, expected (T, 7) and (T, S)")
    if np.abs(actions).max() > 1 + 1e-6:
        raise ValueError(f"{where}: actions reach {np.abs(actions).max():.3g}; relative ones lie in [-1, 1]")
    return Recording(name, actions, states, _poses(model, scene.fixture_bodies(), where))


def absolute_actions(scene: Scene, recording: Recording) -> np.ndarray:
    """(T, 7) poses in the world's frame that the recorded steps commanded, and the gripper's commands."""
    _start(scene, recording)
    return scene.absolute_actions(recording.states, recording.actions)


def play(
    scene: Scene, recording: Recording, actions: np.ndarray, image_size: int
) -> tuple[dict[str, np.ndarray], bool]:
    """Play absolute actions (T, 7) from the recording's first state.

    They pass through the network's form, and are played just as the environment will play a policy's.

    Returns:
        What is seen before each action, by name: frames uint8 (T, image_size, image_size, 3), or none for a size of 0,
        and states float32 (T, d); and whether the task was solved.
    """
    _start(scene, recording)
    scene.relative = False
    seen: dict[str, list[np.ndarray]] = {}
    success = False
    for action in from_pose_actions(to_pose_actions(actions)):
        frames = {name: scene.frame(camera, image_size) for name, camera in CAMERAS.items()} if image_size else {}
        for name, value in (frames | scene.robot_states()).items():
            seen.setdefault(name, []).append(value)
        scene.step(action)
        success = success or scene.is_success
    return {name: np.stack(values) for name, values in seen.items()}, success


def _start(scene: Scene, recording: Recording) -> None:
    scene.restore(recording.states[0], recording.fixtures, gripper=recording.actions[0, 6])


def _poses(model: str, bodies: tuple[str, ...], where: str) -> dict[str, Pose]:
    """Where the bodies stand in a model's XML."""
    found = {body.get("name"): body for body in ElementTree.fromstring(model).iter("body")}
    absent = [name for name in bodies if name not in found]
    if absent:
        raise ValueError(f"{where}: its model_file has no {', '.join(absent)}")
    return {name: (_numbers(found[name], "pos", "0 0 0"), _numbers(found[name], "quat", "1 0 0 0")) for name in bodies}


def _numbers(body: ElementTree.Element, name: str, default: str) -> np.ndarray:
    return np.array([float(number) for number in body.get(name, default).split()])


def _opened(path: Path) -> h5py.File:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(unreadable(path, "HDF5 file", error)) from error
    if "data" not in file:
        file.close()
        raise ValueError(f"{path}: holds no group data, as LIBERO's files do")
    return file
