"""A folder of mp4 files without actions, each an episode to learn video from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unified_video_action.dataset.fingerprints import sample_files
from unified_video_action.dataset.formats.video_frames import VideoFiles, read_header
from unified_video_action.dataset.frame_fit import Fit
from unified_video_action.dataset.mixture import Source, Wanted
from unified_video_action.dataset.store import EpisodeStore, StoreError, view_of
from unified_video_action.dataset.tables import Table
from unified_video_action.files import expand, find_files, unreadable
from unified_video_action.messages import few

CAPTIONS = "captions.json"
OTHER_VIDEOS = "give a folder that holds such files itself; other videos become mp4 by: ffmpeg -i FILE NEW.mp4"
TICK = 1e-4  # seconds: no video's clock is coarser than a frame, none of ours finer than this


@dataclass(frozen=True)
class VideoFolderSource(Source):
    """mp4 files in the order of their names. Rows are their frames, all of them or every few."""

    camera: str | None = None  # task's name of the camera; null: its only one
    fps: float | None = None  # frames/s to pick out of the files' own; null: see stride
    stride: int = 1  # every how many-th frame is used, whatever the files' rate
    image_size: int | Sequence[int] | None = None  # frames become S x S, or [H, W]; null: they stay as they are
    crop: bool = True  # for that, cut the longer side about the centre; false: stretch
    instruction: str | None = None  # what is done in all of them, for tasks with language
    captions: bool = False  # the folder's captions.json says it, {"a.mp4": "push the block"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.stride, int) or self.stride < 1:
            raise ValueError(f"source {self.path}: stride={self.stride!r} must be a positive integer")
        if self.fps is not None and (not self.fps > 0 or self.stride != 1):
            raise ValueError(f"source {self.path}: fps={self.fps} must be positive, and goes without stride")
        if self.instruction is not None and self.captions:
            raise ValueError(f"source {self.path}: instruction and captions are both set; keep one")

    def tables(self, wanted: Wanted) -> list[Table]:
        camera = wanted.cameras[0] if self.camera is None and len(wanted.cameras) == 1 else self.camera
        if wanted.cameras != (camera,):
            reads = ", ".join(wanted.cameras)
            raise ValueError(f"{self.path}: videos are one camera (camera={self.camera}), but the task reads {reads}")
        root = Path(expand(self.path))
        store = VideoFolderStore(root, self.fps, self.stride, Fit.parse(self.image_size, self.crop, str(root)))
        return [Table(store, {camera: camera}, {}, instructions=self._instructions(store), weight=self.weight)]

    def _instructions(self, store: VideoFolderStore) -> tuple[str, ...] | None:
        if not self.captions:
            return None if self.instruction is None else (self.instruction,) * store.n_episodes
        path = store.root / CAPTIONS
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the file is missing, but captions is true")
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(unreadable(path, "JSON file", error)) from error
        names = [file.name for file in store.files]
        missing = [name for name in names if not (isinstance(known, dict) and isinstance(known.get(name), str))]
        if missing:
            raise StoreError(f'{path}: has no text for {few(missing)}; expected {{"{missing[0]}": "what is done"}}')
        return tuple(known[name] for name in names)


class VideoFolderStore(EpisodeStore):
    """Frames of a folder's mp4 files; there is one camera, whatever it is called.

    Opening it reads the files' headers; a file's frame times are read when a frame of it is first asked for.

    Args:
        fps: frames/s to pick, or None for every `stride`-th frame.
    """

    def __init__(self, root: Path, fps: float | None, stride: int, fit: Fit) -> None:
        self.root, self.fps, self.stride = root, fps, stride
        self.files = tuple(find_files(root, [".mp4"], [CAPTIONS], OTHER_VIDEOS))
        headers = [read_header(path) for path in self.files]
        self._rates = np.array([header.rate for header in headers])  # (E,)
        slow = [path.name for path, rate in zip(self.files, self._rates) if rate < (fps or 0) * 0.999]
        if slow:
            raise StoreError(f"{root}: {few(slow)} have fewer than fps={fps:g} frames/s; give a lower rate")
        first = headers[0].size
        strange = [path.name for path, header in zip(self.files, headers) if header.size != first]
        if strange and fit.size is None:
            raise StoreError(
                f"{root}: {few(strange)} differ in size from {self.files[0].name} ({first[0]} x {first[1]}); set "
                "image_size"
            )
        last = np.array([header.frames - 1 for header in headers])
        counts = last // stride if fps is None else (last * fps / self._rates + 1e-6).astype(np.int64)
        self.episode_ends = np.cumsum(counts + 1).astype(np.int64)
        self.location = view_of(root, fps, stride, fit)
        self._size, self._videos = fit.shape(first), VideoFiles(fit)

    def frame_shape(self, name: str) -> tuple[int, int]:
        return self._size

    def _read(self, name: str, episode: int, steps: np.ndarray, out: np.ndarray) -> None:
        self._videos.read(self.files[episode], self._times(episode, steps), TICK, out)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.location.rpartition("@")[2].encode() + self.episode_ends.tobytes())
        sample_files(digest, self.files, self.root)
        return digest.hexdigest()

    def _times(self, episode: int, steps: np.ndarray) -> np.ndarray:
        """Seconds (n,) of the frames at `steps` (n,) of a file."""
        path, rate = self.files[episode], self._rates[episode]
        known = self._videos.times(path)
        if self.fps is None:
            return known[steps * self.stride]
        numbers = np.round(steps * rate / self.fps).astype(int)
        times = known[np.minimum(numbers, len(known) - 1)]
        if np.abs(times - known[0] - steps / self.fps).max() > 1.0 / rate:
            raise StoreError(
                f"{path}: its frames do not follow each other at {rate:g} frames/s; give stride rather than fps, or "
                "write it at a constant rate: ffmpeg -i FILE -r RATE NEW.mp4"
            )
        return times
