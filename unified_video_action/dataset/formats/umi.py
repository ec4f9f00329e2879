"""Archives of hand-held grippers in UMI's published layout: poses of the gripper, its width, and camera frames."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unified_video_action.dataset.cache import CACHES
from unified_video_action.dataset.formats.zarr import FRAMES_IN_MEMORY, ReplayBuffer
from unified_video_action.dataset.frame_fit import Fit, FrameMask
from unified_video_action.dataset.mixture import StoreSource, Wanted
from unified_video_action.dataset.store import SMALL, EpisodeStore, Kept, StoreError, is_url, view_of
from unified_video_action.dataset.tables import Table
from unified_video_action.dataset.transforms import END_EFFECTOR_STATES, GRIPPER, POSE, START_POSE
from unified_video_action.files import expand, find_files
from unified_video_action.poses import from_vector
from unified_video_action.rotations import matrix_to_6d

POSITION, ROTATION, WIDTH, START = (
    f"robot0_{name}" for name in ("eef_pos", "eef_rot_axis_angle", "gripper_width", "demo_start_pose")
)
NEEDED = {POSITION: 3, ROTATION: 3, WIDTH: 1}  # array -> numbers in a row
SECOND_ARM = "robot1_eef_pos"
ENDINGS = (".zip", ".zarr")
MOST_OPEN = 32  # archives of a folder


@dataclass(frozen=True)
class UmiSource(StoreSource):
    """An archive (zip, folder or URL), or a folder of archives such as a robot's recorder leaves, one for each run.

    Arrays: data/<camera> uint8 (N, H, W, 3), data/robot0_eef_pos (N, 3) metres, data/robot0_eef_rot_axis_angle (N, 3)
    axis-angle radians, data/robot0_gripper_width (N, 1) metres, meta/episode_ends, and where an episode's first row is
    not its start, data/robot0_demo_start_pose (N, 6). A camera is called as its array. Frames may be stored in chunks
    of one, as JPEG XL or JPEG, and are decoded when a window needs them.

    Tables hold the states that a task's `end_effector` is made of, and as actions the poses in the frame of the
    recording: position, 6-D rotation, opening.
    """

    instruction: str | None = None  # what is done in all episodes, for tasks with language
    image_size: int | Sequence[int] | None = None  # frames become S x S, or [H, W]; null: they stay as they are
    mask: str | Sequence | None = None  # what is blackened: mirrors, or polygons in shares of the frame; null: nothing

    def tables(self, wanted: Wanted) -> list[Table]:
        hint = "say in task.end_effector.states which states of the task are made of them, and how"
        self.require(wanted, hint, low_dim=END_EFFECTOR_STATES)
        where = f"source {self.path}"
        fit, mask = Fit.parse(self.image_size, True, where), FrameMask.parse(self.mask, where)
        store = UmiStore(self.path, wanted.cameras, fit, mask)
        pose, width = _poses(store.vectors), store.vectors[WIDTH]
        states = {POSE: pose, GRIPPER: width, START_POSE: store.vectors[START]}
        matrices = from_vector(pose)
        action = [matrices[:, :3, 3], matrix_to_6d(matrices[:, :3, :3]), width]  # (N, 10) as the policy writes poses
        table = Table(
            store=store,
            cameras={camera: camera for camera in wanted.cameras},
            low_dim={name: states[name] for name in wanted.low_dim},
            action=np.concatenate(action, axis=1).astype(np.float32) if self.has_action else None,
            instructions=None if self.instruction is None else (self.instruction,) * store.n_episodes,
        )
        return [table]


class UmiStore(EpisodeStore):
    """Episodes of one archive or of all archives in a folder, by name; frames are masked, then resized.

    Attributes:
        vectors: array -> float32 (N, d), those of NEEDED and robot0_demo_start_pose.
    """

    def __init__(
        self, location: str | Path, cameras: Sequence[str], fit: Fit | None = None, mask: FrameMask | None = None
    ) -> None:
        self.fit, self.mask = fit or Fit(), mask
        paths = archives(expand(location))
        self._archives: list[ReplayBuffer] = []
        self._open, self._sizes, parts = Kept(MOST_OPEN), {}, []
        for number, path in enumerate(paths):
            archive = ReplayBuffer(path, cameras, [], FRAMES_IN_MEMORY // len(paths))
            self._archives.append(archive)
            self._archive(number)
            parts.append(_vectors(archive))
            for camera in cameras:
                size, first = archive.frame_shape(camera), self._sizes.setdefault(camera, archive.frame_shape(camera))
                if self.fit.size is None and size != first:
                    raise StoreError(f"{path}: {camera} has frames of {size}, {paths[0]} of {first}; set image_size")
        self.vectors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._first = np.cumsum([0, *(archive.n_episodes for archive in self._archives)])  # episode of each archive
        starts = np.cumsum([0, *map(len, self._archives)])
        ends = [start + archive.episode_ends for start, archive in zip(starts, self._archives)]
        self.episode_ends = np.concatenate(ends).astype(np.int64)
        self.location = view_of(expand(location), sorted(cameras), self.fit, self.mask)

    def frame_shape(self, name: str) -> tuple[int, int]:
        return self.fit.shape(self._sizes[name])

    def _read(self, name: str, episode: int, steps: np.ndarray, out: np.ndarray) -> None:
        owner = int(np.searchsorted(self._first, episode, side="right")) - 1
        archive = self._archive(owner)
        stored = archive.frames(name, archive.episode_starts[episode - self._first[owner]] + steps)
        for index, frame in enumerate(stored):
            out[index] = self.fit(frame if self.mask is None else self.mask(frame))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.location.rpartition("@")[2].encode())
        for number in range(len(self._archives)):
            digest.update(self._archive(number).fingerprint(SMALL // len(self._archives)).encode())
        return digest.hexdigest()

    def _archive(self, number: int) -> ReplayBuffer:
        """One of them; the one that was not used for the longest time is closed for it."""
        return self._open.get(number, lambda: self._archives[number])


def archives(location: str) -> list[str]:
    """The archive that `location` names, or those in the folder, by name. Raises FileNotFoundError: it is empty."""
    folder = Path(location)
    if is_url(location) or not folder.is_dir():
        return [location]
    if not any(folder.iterdir()):
        raise FileNotFoundError(f"{location}: an empty folder; expected archives NAME.zarr.zip")
    return list(map(str, find_files(folder, ENDINGS, CACHES, required=False))) or [location]


def _vectors(archive: ReplayBuffer) -> dict[str, np.ndarray]:
    """The arrays of an archive that describe the end effector, float32 (n, d)."""
    if archive.has(SECOND_ARM):
        raise StoreError(
            f"{archive.location}: has data/{SECOND_ARM}, so it is of two arms; only one arm is supported: write the "
            "arrays of one arm, as robot0_*, into an archive of its own"
        )
    found = {name: archive.read_vectors(name, width) for name, width in NEEDED.items()}
    if archive.has(START):
        return found | {START: archive.read_vectors(START, 6)}
    first = np.repeat(archive.episode_starts, np.diff(archive.episode_ends, prepend=0))  # (n,)
    return found | {START: _poses(found)[first]}


def _poses(vectors: dict[str, np.ndarray]) -> np.ndarray:
    """(n, 6)"""
    return np.concatenate([vectors[POSITION], vectors[ROTATION]], axis=1)
