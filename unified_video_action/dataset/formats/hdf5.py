"""Demonstrations in HDF5 files, data/<demo>/...: robomimic's and LIBERO's, both with absolute actions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unified_video_action.dataset.cache import CACHES
from unified_video_action.dataset.mixture import StoreSource, Wanted
from unified_video_action.dataset.store import (
    SMALL,
    EpisodeStore,
    Kept,
    StoreError,
    as_float32,
    check_numbers,
    is_url,
    remembered,
)
from unified_video_action.dataset.tables import Table
from unified_video_action.env.robomimic.action_kind import ActionKind, kind_of_actions
from unified_video_action.env.system_libraries import explain_missing_libraries
from unified_video_action.files import expand, find_files, unreadable
from unified_video_action.messages import few
from unified_video_action.rotations import AXIS_ANGLE_ACTION, to_pose_actions

with explain_missing_libraries():
    import h5py

END_EFFECTOR = "obs/robot0_eef_pos"
CONTROL = "control_mode"  # attribute of LIBERO's group data; "absolute" in converted files, absent from published ones
INSTRUCTION = "instruction"  # attribute of LIBERO's group data
FRAMES_AT_ONCE = 64  # read for the fingerprint


class MissingDataset(StoreError):
    """A dataset that a demonstration lacks."""


@dataclass(frozen=True)
class RobomimicSource(StoreSource):
    """A file of robomimic: cameras and states are called as in data/<demo>/obs (`sideview_image`, `robot0_eef_pos`).

    Actions are stored as position, axis-angle, gripper (7) and given as position, 6-D rotation, gripper (10). They must
    be poses in the frame of `robot0_eef_pos`, which is judged as `kind_of_actions` says.
    """

    poses: bool = False  # true: the actions are such poses, whatever they look like

    def tables(self, wanted: Wanted) -> list[Table]:
        try:
            table = _table(self, self.path, wanted, more={END_EFFECTOR: None})
        except MissingDataset as error:
            raise StoreError(
                f"{error}. Frames and states of a file that has the simulator's states alone are made by: "
                f"python scripts/render_robomimic.py {self.path} --absolute --output NEW.hdf5"
            ) from error
        if self.has_action and not self.poses:
            _require_poses(table.store)
        return [table]


@dataclass(frozen=True)
class LiberoSource(StoreSource):
    """A folder of files of `scripts/replay_libero.py`, one for each task, or one of them; the task is the instruction.

    Cameras are `agentview_rgb` and `eye_in_hand_rgb`, states `ee_pos` (3), `ee_rotation` (6) and `gripper_qpos` (2).
    Actions are stored as position, axis-angle, gripper (7) and given as position, 6-D rotation, gripper (10).
    """

    def tables(self, wanted: Wanted) -> list[Table]:
        tables = []
        for path in libero_files(self.path):
            attributes = Hdf5Store(path, images=[], vectors=["actions"]).attributes
            if attributes.get(CONTROL) != "absolute" or INSTRUCTION not in attributes:
                raise StoreError(
                    f"{path}: as LIBERO publishes it, its actions are steps; convert it, or its folder, with: "
                    f"python scripts/replay_libero.py {path} --output NEW_FOLDER"
                )
            table = _table(self, path, wanted)
            tables.append(replace(table, instructions=(str(attributes[INSTRUCTION]),) * table.store.n_episodes))
        return tables


def libero_files(location: str) -> list[Path]:
    """The file that `location` names, or those in the folder, by name. Raises FileNotFoundError when there are none."""
    path = Path(expand(location))
    if not path.exists():
        raise FileNotFoundError(f"{location}: no such file or folder")
    return find_files(path, [".hdf5"], CACHES) if path.is_dir() else [path]


def _table(source: StoreSource, path: str | Path, wanted: Wanted, more: Mapping[str, None] | None = None) -> Table:
    """What is wanted of a file, by its names below `obs`; `more` is read where actions are."""
    cameras, low_dim = ({name: f"obs/{name}" for name in names} for names in (wanted.cameras, wanted.low_dim))
    actions = {"actions": AXIS_ANGLE_ACTION, **(more or {})} if source.has_action else {}
    store = Hdf5Store(path, list(cameras.values()), dict.fromkeys(low_dim.values()) | actions)
    return Table(
        store=store,
        cameras=cameras,
        low_dim={name: store.vectors[stored] for name, stored in low_dim.items()},
        action=to_pose_actions(store.vectors["actions"]) if source.has_action else None,
    )


def _require_poses(store: Hdf5Store) -> None:
    """Raise StoreError for actions of robomimic that do not look like poses in the end effector's frame."""
    actions, effector = store.vectors["actions"], store.vectors[END_EFFECTOR]
    kind = kind_of_actions(actions, effector, store.episode_ends, store.attributes.get("env_args"))
    convert = f"python scripts/render_robomimic.py {store.location} --absolute --output NEW.hdf5"
    if kind is ActionKind.STEPS:
        raise StoreError(
            f"{store.location}: its actions are steps, not poses in the world's frame; convert them with: {convert}"
        )
    if kind is ActionKind.OTHER_FRAME:
        away = np.median(actions[:, :3] - effector, axis=0).astype(float).round(3).tolist()
        raise StoreError(
            f"{store.location}: its actions are poses in another frame than {END_EFFECTOR}, {away} m from it at the "
            "median, for example the frame of the arm's base. Write both in one frame, or set poses: true at this "
            "source to learn them as they are"
        )
    if kind is not ActionKind.POSES:
        raise StoreError(
            f"{store.location}: its actions follow neither {END_EFFECTOR} nor its motion. If they are poses all the "
            f"same, set poses: true at this source; steps of the end effector are converted with: {convert}"
        )


class Hdf5Store(EpisodeStore):
    """Episodes of a file with one group for each demonstration below `data`, in the order of their numbers.

    Names are paths within a demonstration, such as "obs/agentview_image" or "actions". Opening reads shapes and the
    vectors (kept, float32); frames stay in the file.

    Args:
        location: a file; ~ and environment variables are expanded.
        images: names of frames, uint8 (T, H, W, 3).
        vectors: names of numbers (T, D) to keep in memory; a mapping says D, where it is not None.

    Attributes:
        demos: names of the E demonstrations, "demo_0" and so on.
        vectors: name -> (N, D) float32.
        attributes: those of the group `data`.

    Raises:
        FileNotFoundError: nothing at `location`.
        StoreError: no such layout, damaged or inconsistent; names file, demonstration and dataset.
    """

    def __init__(
        self, location: str | Path, images: Sequence[str], vectors: Sequence[str] | Mapping[str, int | None]
    ) -> None:
        self.location, self.images = expand(location), tuple(images)
        self._files = Kept()
        if is_url(self.location):
            raise StoreError(f"{self.location}: HDF5 files are read from disk; download it, and give its path")
        if not Path(self.location).is_file():
            what = "is a folder, expected an HDF5 file" if Path(self.location).is_dir() else "no such file or folder"
            raise FileNotFoundError(f"{self.location}: {what}")
        try:
            self._index(dict(vectors) if isinstance(vectors, Mapping) else dict.fromkeys(vectors))
        finally:
            self._files.clear()

    def frame_shape(self, name: str) -> tuple[int, int]:
        return self._sizes[name]

    def fingerprint(self, small: int = SMALL) -> str:
        """sha256 over episode ends and all frames; more than `small` bytes are read once, as `hash_files` does."""
        layout = hashlib.sha256(self.episode_ends.tobytes() + b"\0")
        for name in self.images:
            layout.update(f"{name} {self.frame_shape(name)}".encode())
        total = sum(len(self) * 3 * height * width for height, width in self._sizes.values())
        if total <= small:
            return self._contents(layout.copy())
        stat = Path(self.location).stat()
        signature = hashlib.sha256(f"{layout.hexdigest()} {stat.st_size} {stat.st_mtime_ns}".encode())
        return remembered(signature.hexdigest(), lambda: self._contents(layout.copy()), total)

    def _contents(self, digest: hashlib._Hash) -> str:
        for name in self.images:
            for episode in range(self.n_episodes):
                dataset = self._dataset(episode, name)
                for start in range(0, len(dataset), FRAMES_AT_ONCE):
                    digest.update(self._slice(dataset, start, start + FRAMES_AT_ONCE).tobytes())
        self._files.clear()
        return digest.hexdigest()

    def _read(self, name: str, episode: int, steps: np.ndarray, out: np.ndarray) -> None:
        dataset = self._dataset(episode, name)
        near = dataset.chunks[0] if dataset.chunks else 1
        for run in np.split(np.arange(len(steps)), np.flatnonzero(np.diff(steps) > near) + 1):  # each is read at once
            first, last = int(steps[run[0]]), int(steps[run[-1]])
            out[run] = self._slice(dataset, first, last + 1)[steps[run] - first]

    def _index(self, widths: dict[str, int | None]) -> None:
        """Set every attribute but the location."""
        file = self._open()
        group = file.get("data")
        demos = list(group) if isinstance(group, h5py.Group) else []
        if not demos:
            raise StoreError(f"{self.location}: holds {few(file)}, expected data/<demonstration>/...")
        numbers = {demo: re.search(r"\d+$", demo) for demo in demos}  # demo_2 comes before demo_10, no number last
        self.demos = tuple(sorted(demos, key=lambda demo: (int(numbers[demo][0]) if numbers[demo] else 2**62, demo)))
        self.attributes: dict[str, Any] = dict(group.attrs)
        lengths, values, self._sizes = [], {name: [] for name in widths}, {}
        for episode, demo in enumerate(self.demos):
            found = {name: self._dataset(episode, name) for name in (*self.images, *widths)}
            counts = {name: dataset.shape[0] if dataset.ndim else 0 for name, dataset in found.items()}
            if len(set(counts.values())) != 1 or 0 in counts.values():
                raise StoreError(f"{self.location}: data/{demo} has datasets of {counts} steps, expected one length")
            lengths.append(next(iter(counts.values())))
            for name in self.images:
                dataset, size = found[name], self._sizes.setdefault(name, found[name].shape[1:3])
                if dataset.dtype != np.uint8 or dataset.shape[1:] != (*size, 3):
                    raise StoreError(
                        f"{self.location}: {dataset.name} is {dataset.dtype} {dataset.shape}, expected uint8 "
                        f"{(lengths[-1], *size, 3)}, as every frame of a camera"
                    )
            for name in widths:
                where = f"{self.location}: {found[name].name}"
                check_numbers(found[name], where, widths[name])
                widths[name] = found[name].shape[1]  # the same in all demonstrations
                values[name].append(as_float32(self._slice(found[name], 0, lengths[-1]), where))
        self.episode_ends = np.cumsum(lengths)
        self.vectors = {name: np.concatenate(parts) for name, parts in values.items()}  # (N, D)

    def _open(self) -> h5py.File:
        try:
            return self._files.get("", lambda: h5py.File(self.location, "r"))
        except OSError as error:
            raise StoreError(unreadable(self.location, "HDF5 file", error)) from error

    def _dataset(self, episode: int, name: str) -> h5py.Dataset:
        path = f"data/{self.demos[episode]}/{name}"
        try:
            member = self._open().get(path)
        except (OSError, RuntimeError, KeyError) as error:
            raise StoreError(f"{self.location}: {path} cannot be opened ({error})") from error
        if not isinstance(member, h5py.Dataset):
            beside = self._open().get(path.rpartition("/")[0])
            names = few(beside if isinstance(beside, h5py.Group) else ())
            raise MissingDataset(f"{self.location}: {path} is missing; beside it there is {names}")
        return member

    def _slice(self, dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
        try:
            return dataset[start:stop]
        except (OSError, RuntimeError) as error:
            raise StoreError(f"{self.location}: {dataset.name}[{start}:{stop}] cannot be read ({error})") from error
