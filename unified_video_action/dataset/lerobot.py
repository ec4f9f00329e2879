"""LeRobotDataset v3 folders: many episodes in each parquet and mp4 file; the configuration says what a feature is."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unified_video_action.dataset.frame_fit import Fit
from unified_video_action.dataset.jpeg import decode_image
from unified_video_action.dataset.lerobot_folder import NUMBERS, Episodes, LeRobotFolder
from unified_video_action.dataset.mixture import Source, Wanted
from unified_video_action.dataset.store import EpisodeStore, sample_files
from unified_video_action.dataset.tables import Table, check_weight
from unified_video_action.dataset.video_frames import VideoFiles
from unified_video_action.dataset.zarr_store import StoreError, expand
from unified_video_action.files import unreadable

TIME_TOLERANCE = 0.2  # of the time between two frames: how far a frame may lie from where the index says
PICTURES_IN_MEMORY = 2**25  # bytes of encoded pictures that a process keeps


@dataclass(frozen=True)
class LeRobotSource(Source):
    """Which feature of a LeRobotDataset v3 is what.

    Low-dim values and actions are float32 in the dataset's units; a list of features is put side by side.
    """

    path: str | None  # folder with meta, data and videos; ~ and environment variables are expanded
    cameras: Mapping[str, str] | None  # task's camera -> feature: {image: observation.images.front}
    action: str | Sequence[str] | None = "action"  # feature, or several; null: a video to learn from
    low_dim: Mapping[str, str | Sequence[str]] | None = None  # task's name -> feature, or several
    use_tasks: bool = False  # the task string is the instruction, of each row where it changes within an episode
    episodes: Sequence[int] | str | None = None  # numbers, or "start:stop"; null: all
    image_size: int | Sequence[int] | None = None  # frames become S x S, or [H, W]; null: they stay as they are
    crop: bool = True  # for that, cut the longer side about the centre; false: stretch
    fps: float | None = None  # what the task's control rate is: a dataset of another is refused; null: any
    weight: float | None = None  # share of the training samples, relative to the other sources'; null: by its size

    def __post_init__(self) -> None:
        if not self.path or self.path == "???":
            raise ValueError("the LeRobot source has no path: give the folder that holds meta/info.json")
        check_weight(self.path, self.weight)

    def tables(self, wanted: Wanted) -> list[Table]:
        if wanted.auxiliary:
            raise ValueError(f"{self.path}: it has no auxiliary targets; set task.shape_meta.auxiliary_dim to 0")
        folder = LeRobotFolder(Path(expand(self.path)))
        if self.fps is not None and abs(folder.fps - self.fps) > 1e-3 * self.fps:
            raise StoreError(f"{folder.root}: has {folder.fps:g} frames/s, expected fps={self.fps:g}")
        cameras = {name: _given(self, "cameras", name) for name in wanted.cameras}
        low_dim = {name: _listed(_given(self, "low_dim", name)) for name in wanted.low_dim}
        action = _listed(self.action)
        for key in [*action, *(key for keys in low_dim.values() for key in keys)]:
            folder.feature(key, NUMBERS, "a state or an action (null, if the data has no actions)")
        columns = list(dict.fromkeys([*action, *(key for keys in low_dim.values() for key in keys)]))
        columns += ["task_index"] * self.use_tasks
        sizes = {key: folder.frame_size(key) for key in cameras.values()}
        episodes = folder.episodes(list(cameras.values()), self.episodes)
        first_rows, values = folder.rows(episodes, columns)
        instructions = folder.instructions(episodes, values.pop("task_index")[:, 0]) if self.use_tasks else None
        values = {name: column.astype(np.float32) for name, column in values.items()}
        table = Table(
            store=LeRobotStore(folder, episodes, first_rows, sizes, Fit.parse(self.image_size, self.crop, self.path)),
            cameras=cameras,
            low_dim={name: np.concatenate([values[key] for key in keys], axis=1) for name, keys in low_dim.items()},
            action=np.concatenate([values[key] for key in action], axis=1) if action else None,
            instructions=instructions,
            weight=self.weight,
        )
        if table.action is not None and table.action.shape[1] != wanted.action_dim:
            raise StoreError(
                f"{folder.root}: {' and '.join(action)} have {table.action.shape[1]} dimensions, but "
                f"task.shape_meta.action has {wanted.action_dim}"
            )
        return [table]


class LeRobotStore(EpisodeStore):
    """Frames of the cameras in `sizes`, out of mp4 files or out of parquet files; names are the features'.

    Args:
        first_rows: (E,) row of each episode's beginning in its parquet file.
        sizes: camera -> (H, W) as stored.
    """

    def __init__(
        self,
        folder: LeRobotFolder,
        episodes: Episodes,
        first_rows: np.ndarray,
        sizes: Mapping[str, tuple[int, int]],
        fit: Fit,
    ) -> None:
        self.root, self.fps, self.fit = folder.root, folder.fps, fit
        self.index, self.first_rows, self.sizes = episodes, first_rows, dict(sizes)
        self.episode_ends = np.cumsum(episodes.lengths).astype(np.int64)
        # Two sources may read other cameras, sizes or episodes of one folder: each has caches of its own.
        view = repr((sorted(sizes), fit, episodes.numbers.tolist()))
        self.location = f"{folder.root}@{hashlib.sha256(view.encode()).hexdigest()[:8]}"
        self._videos, self._pictures = VideoFiles(fit), _Pictures()

    def frame_shape(self, name: str) -> tuple[int, int]:
        return self.fit.shape(self.sizes[name])

    def frames(self, name: str, rows: np.ndarray) -> np.ndarray:
        flat = np.asarray(rows, np.int64).ravel()
        frames = np.empty((len(flat), *self.frame_shape(name), 3), np.uint8)
        owners = np.searchsorted(self.episode_ends, flat, side="right")
        for episode in np.unique(owners):
            mine = np.flatnonzero(owners == episode)
            steps = flat[mine] - self.episode_starts[episode]
            if name in self.index.videos:
                frames[mine] = self._filmed(name, int(episode), steps)
            else:
                frames[mine] = self._pictured(name, int(episode), steps)
        return frames.reshape(*np.shape(rows), *frames.shape[1:])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.location.rpartition("@")[2].encode())
        digest.update(self.episode_ends.tobytes() + self.first_rows.tobytes())
        files = set()
        for name in sorted(self.sizes):
            segments = self.index.videos.get(name)
            digest.update(f"{name} {segments is None}".encode())
            if segments is not None:
                digest.update(segments.begin.tobytes())
            files |= set(self.index.files if segments is None else segments.files)
        sample_files(digest, sorted(files), self.root)
        return digest.hexdigest()

    def _filmed(self, name: str, episode: int, steps: np.ndarray) -> np.ndarray:
        segments = self.index.videos[name]
        frames = np.empty((len(steps), *self.frame_shape(name), 3), np.uint8)
        times = segments.begin[episode] + steps / self.fps
        try:
            self._videos.read(segments.files[episode], times, TIME_TOLERANCE / self.fps, frames)
        except StoreError as error:
            raise StoreError(f"{error} (episode {self.index.numbers[episode]}, {name})") from error
        return frames

    def _pictured(self, name: str, episode: int, steps: np.ndarray) -> np.ndarray:
        path, frames = self.index.files[episode], []
        for row in (self.first_rows[episode] + steps).tolist():
            where = f"{path}: {name} in row {row} (episode {self.index.numbers[episode]})"
            image = decode_image(self._pictures.read(path, name, row, where), where)
            if image.shape[:2] != self.sizes[name]:
                raise StoreError(f"{where} is {image.shape[:2]}, but meta/info.json says {self.sizes[name]}")
            frames.append(self.fit(image))
        return np.stack(frames)


class _Pictures:
    """Encoded pictures in parquet files, by row; the row groups read last are kept. Can be pickled or forked."""

    def __init__(self) -> None:
        self._owner = 0  # process that read them
        self._starts: dict[Path, np.ndarray] = {}  # file -> first row of each row group, and the number of rows
        self._groups: OrderedDict[tuple[Path, str, int], pa.Array] = OrderedDict()

    def read(self, path: Path, name: str, row: int, where: str) -> bytes:
        if self._owner != os.getpid():
            self._owner, self._starts, self._groups = os.getpid(), {}, OrderedDict()
        if path not in self._starts:
            with pq.ParquetFile(path) as file:
                rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._starts[path] = np.cumsum([0, *rows])
        group = int(np.searchsorted(self._starts[path], row, side="right")) - 1
        encoded = self._group(path, name, group)[row - int(self._starts[path][group])].as_py()
        if not isinstance(encoded, dict) or not encoded.get("bytes"):
            raise StoreError(
                f"{where}: there is no picture, expected its bytes in the parquet file; choose the episodes that have "
                "pictures with `episodes`, or another camera"
            )
        return encoded["bytes"]

    def _group(self, path: Path, name: str, group: int) -> pa.Array:
        key = (path, name, group)
        if key not in self._groups:
            try:
                with pq.ParquetFile(path) as file:
                    self._groups[key] = file.read_row_group(group, columns=[name])[name].combine_chunks()
            except (pa.ArrowException, OSError) as error:
                raise StoreError(unreadable(path, "parquet file", error)) from error
            while len(self._groups) > 1 and sum(part.nbytes for part in self._groups.values()) > PICTURES_IN_MEMORY:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]

    def __getstate__(self) -> dict:
        return {"_owner": 0, "_starts": {}, "_groups": OrderedDict()}


def _given(source: LeRobotSource, role: str, name: str) -> str | Sequence[str]:
    mapping = getattr(source, role) or {}
    if name not in mapping:
        raise ValueError(
            f"source {source.path}: the task needs {name!r}, but {role} has {', '.join(mapping) or 'nothing'}; map it "
            "to a feature of the dataset"
        )
    return mapping[name]


def _listed(keys: str | Sequence[str] | None) -> list[str]:
    return [] if keys is None else [keys] if isinstance(keys, str) else list(keys)
