"""LeRobotDataset v3 folders: many episodes in each parquet and mp4 file; the configuration says what a feature is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unified_video_action.dataset.formats.lerobot_folder import NUMBERS, Episodes, LeRobotFolder
from unified_video_action.dataset.formats.parquet import read_group, row_groups
from unified_video_action.dataset.formats.pictures import decode_image
from unified_video_action.dataset.formats.video_folder import VideoFiles
from unified_video_action.dataset.frame_fit import Fit
from unified_video_action.dataset.mixture import Source, Wanted
from unified_video_action.dataset.store import EpisodeStore, Kept, StoreError, sample_files, view_of
from unified_video_action.dataset.tables import Table
from unified_video_action.files import expand

TIME_TOLERANCE = 0.2  # of the time between two frames: how far a frame may lie from where the index says
PICTURES_IN_MEMORY = 2**25  # bytes of encoded pictures that a process keeps


@dataclass(frozen=True)
class LeRobotSource(Source):
    """Which feature of a LeRobotDataset v3, a folder with meta, data and videos, is what.

    Low-dim values and actions are float32 in the dataset's units; a list of features is put side by side.
    """

    cameras: Mapping[str, str] | None = None  # task's camera -> feature: {image: observation.images.front}
    action: str | Sequence[str] | None = "action"  # feature, or several; null: a video to learn from
    low_dim: Mapping[str, str | Sequence[str]] | None = None  # task's name -> feature, or several
    use_tasks: bool = False  # the task string is the instruction, of each row where it changes within an episode
    episodes: Sequence[int] | str | None = None  # numbers, or "start:stop"; null: all
    image_size: int | Sequence[int] | None = None  # frames become S x S, or [H, W]; null: they stay as they are
    crop: bool = True  # for that, cut the longer side about the centre; false: stretch
    fps: float | None = None  # what the task's control rate is: a dataset of another is refused; null: any

    def tables(self, wanted: Wanted) -> list[Table]:
        self.require(wanted, "map it to a feature", cameras=self.cameras or {}, low_dim=self.low_dim or {})
        folder = LeRobotFolder(Path(expand(self.path)))
        if self.fps is not None and abs(folder.fps - self.fps) > 1e-3 * self.fps:
            raise StoreError(f"{folder.root}: has {folder.fps:g} frames/s, expected fps={self.fps:g}")
        cameras = {name: self.cameras[name] for name in wanted.cameras}
        low_dim = {name: _listed(self.low_dim[name]) for name in wanted.low_dim}
        action = _listed(self.action)
        columns = list(dict.fromkeys([*action, *(key for keys in low_dim.values() for key in keys)]))
        for key in columns:
            folder.feature(key, NUMBERS, "a state or an action (null, if the data has no actions)")
        sizes = {key: folder.frame_size(key) for key in cameras.values()}
        episodes = folder.episodes(list(cameras.values()), self.episodes)
        first_rows, values = folder.rows(episodes, [*columns, *["task_index"] * self.use_tasks])

        def beside(keys: Sequence[str]) -> np.ndarray:
            return np.concatenate([values[key].astype(np.float32) for key in keys], axis=1)

        fit = Fit.parse(self.image_size, self.crop, self.path)
        table = Table(
            store=LeRobotStore(folder, episodes, first_rows, sizes, fit),
            cameras=cameras,
            low_dim={name: beside(keys) for name, keys in low_dim.items()},
            action=beside(action) if action else None,
            instructions=folder.instructions(episodes, values["task_index"][:, 0]) if self.use_tasks else None,
        )
        return [table]


class LeRobotStore(EpisodeStore):
    """Frames of the cameras in `sizes`, out of mp4 files or out of parquet files; names are the features'.

    Args:
        first_rows: (E,) row of each episode's beginning in its parquet file.
        sizes: camera -> (H, W) as stored.
    """

    def __init__(
        self, folder: LeRobotFolder, episodes: Episodes, first_rows: np.ndarray, sizes: dict[str, tuple], fit: Fit
    ) -> None:
        self.root, self.fps, self.fit = folder.root, folder.fps, fit
        self.index, self.first_rows, self.sizes = episodes, first_rows, sizes
        self.episode_ends = np.cumsum(episodes.lengths).astype(np.int64)
        self.location = view_of(folder.root, sorted(sizes), fit, episodes.numbers.tolist())
        self._videos, self._pictures, self._groups = VideoFiles(fit), Kept(PICTURES_IN_MEMORY), Kept()

    def frame_shape(self, name: str) -> tuple[int, int]:
        return self.fit.shape(self.sizes[name])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.location.rpartition("@")[2].encode())
        digest.update(self.episode_ends.tobytes() + self.first_rows.tobytes())
        files = set()
        for name in sorted(self.sizes):
            paths, begin = self.index.videos.get(name, (self.index.files, None))
            digest.update(f"{name} {begin is None}".encode())
            if begin is not None:
                digest.update(begin.tobytes())
            files |= set(paths)
        sample_files(digest, sorted(files), self.root)
        return digest.hexdigest()

    def _read(self, name: str, episode: int, steps: np.ndarray, out: np.ndarray) -> None:
        number = self.index.numbers[episode]
        if name in self.index.videos:
            paths, begin = self.index.videos[name]
            times = begin[episode] + steps / self.fps
            try:
                self._videos.read(paths[episode], times, TIME_TOLERANCE / self.fps, out)
            except StoreError as error:
                raise StoreError(f"{error} (episode {number}, {name})") from error
            return
        path = self.index.files[episode]
        for index, row in enumerate((self.first_rows[episode] + steps).tolist()):
            where = f"{path}: {name} in row {row} (episode {number})"
            image = decode_image(self._picture(path, name, row, where), where)
            if image.shape[:2] != self.sizes[name]:
                raise StoreError(f"{where} is {image.shape[:2]}, but meta/info.json says {self.sizes[name]}")
            out[index] = self.fit(image)

    def _picture(self, path: Path, name: str, row: int, where: str) -> bytes:
        """An encoded picture in a parquet file, of which the row groups read last are kept."""
        starts = self._groups.get(path, lambda: row_groups(path))
        group = int(np.searchsorted(starts, row, side="right")) - 1
        pictures = self._pictures.get((path, name, group), lambda: read_group(path, name, group))
        encoded = pictures[row - int(starts[group])].as_py()
        if not isinstance(encoded, dict) or not encoded.get("bytes"):
            raise StoreError(
                f"{where}: there is no picture, expected its bytes in the parquet file; choose the episodes that have "
                "pictures with `episodes`, or another camera"
            )
        return encoded["bytes"]


def _listed(keys: str | Sequence[str] | None) -> list[str]:
    return [] if keys is None else [keys] if isinstance(keys, str) else list(keys)
