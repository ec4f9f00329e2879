"""mp4 files: exact frames by their time, and folders of files without actions, each an episode to learn video from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from unified_video_action.dataset.frame_fit import Fit
from unified_video_action.dataset.mixture import Source, Wanted
from unified_video_action.dataset.store import EpisodeStore, Kept, StoreError, sample_files, view_of
from unified_video_action.dataset.tables import Table
from unified_video_action.files import expand, find_files, unreadable
from unified_video_action.messages import few

CAPTIONS = "captions.json"
OTHER_VIDEOS = "give a folder that holds such files itself; other videos become mp4 by: ffmpeg -i FILE NEW.mp4"
TICK = 1e-4  # seconds: no video's clock is coarser than a frame, none of ours finer than this
SEEK_COST = 8  # frames whose decoding takes about as long as a seek
TIMES_IN_MEMORY = 2**25  # bytes of frame times that a process keeps


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
        return [Table(store, {camera: camera}, {}, instructions=self._instructions(store))]

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


# -- frames of single files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoHeader:
    """What a file says of its first video stream without decoding."""

    size: tuple[int, int]  # (H, W)
    frames: int
    rate: float  # mean frames per second


def read_header(path: Path) -> VideoHeader:
    """Raises FileNotFoundError, or StoreError for what is not a whole video."""
    container, stream = _open(path)
    with container:
        if not stream.frames or not stream.average_rate:
            raise StoreError(f"{path}: its header counts no frames; copy it again: ffmpeg -i FILE -c copy NEW.mp4")
        context = stream.codec_context
        return VideoHeader((context.height, context.width), stream.frames, float(stream.average_rate))


class VideoFiles:
    """Frames of any number of files, of which a process keeps a few open.

    Frames that are asked for in order are decoded in one pass; otherwise decoding begins at the key frame before the
    one wanted. A decoder has one thread: several processes read at once.
    """

    def __init__(self, fit: Fit | None = None, most_open: int = 4) -> None:
        self.fit, self._decoders, self._times = fit or Fit(), Kept(most_open), Kept(TIMES_IN_MEMORY)

    def read(self, path: Path, times: np.ndarray, tolerance: float, out: np.ndarray) -> None:
        """Copy the frames shown at `times` (n,), in any order, into `out` uint8 (n, H, W, 3).

        Args:
            times: seconds on the file's own clock.
            tolerance: seconds by which a frame's time may differ; below half the time between two frames.

        Raises:
            FileNotFoundError: no such file. StoreError: no frame at that time, or a damaged file.
        """
        decoder = self._decoders.get(path, lambda: _Decoder(path))
        for index in np.argsort(times, kind="stable").tolist():
            image = self.fit(decoder.image(float(times[index]), tolerance))
            if image.shape != out.shape[1:]:
                raise StoreError(
                    f"{path}: frames of {image.shape[0]} x {image.shape[1]}, expected {out.shape[1]} x {out.shape[2]}"
                )
            out[index] = image

    def times(self, path: Path) -> np.ndarray:
        """(n,) seconds at which the frames of a file are shown, read from its packets; nothing is decoded."""
        return self._times.get(path, lambda: _frame_times(path))


class _Decoder:
    """One open file, and the frame that was decoded last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container, self._stream = _open(path)
        self._stream.codec_context.thread_count = 1
        self._tick = float(self._stream.time_base)  # seconds
        self._coming: Iterator[av.VideoFrame] = iter(())
        self._frame: av.VideoFrame | None = None

    def close(self) -> None:
        self._coming = self._frame = None
        self._container.close()

    def image(self, time: float, tolerance: float) -> np.ndarray:
        """RGB uint8 (H, W, 3) of the frame shown at `time`."""
        try:
            self._reach(time - tolerance)
        except av.FFmpegError as error:
            raise StoreError(f"{self.path}: cannot be decoded near {time:.3f} s ({error}); fetch it again") from error
        if self._frame is None:
            raise StoreError(
                f"{self.path}: ends before {time:.3f} s, where a frame is expected; it may be truncated, or the times "
                "in the index are wrong"
            )
        if self._seconds() > time + tolerance:
            raise StoreError(
                f"{self.path}: no frame at {time:.4f} s, the next one is at {self._seconds():.4f} s; the times in the "
                "index do not fit this file"
            )
        if self._frame.rotation:
            raise StoreError(
                f"{self.path}: is to be shown turned by {self._frame.rotation} degrees; write it again: ffmpeg -i FILE "
                "NEW.mp4"
            )
        return self._frame.to_ndarray(format="rgb24")

    def _reach(self, earliest: float) -> None:
        """Stand on the first frame that is not before `earliest` seconds; on None if the file ends before."""
        if self._frame is None or earliest < self._seconds() - 1e-9 or self._worth_a_seek(earliest):
            self._seek(earliest)
        while self._frame is not None and self._seconds() < earliest:
            self._next()

    def _seconds(self) -> float:
        return self._frame.pts * self._tick

    def _next(self) -> None:
        self._frame = next((frame for frame in self._coming if frame.pts is not None), None)

    def _worth_a_seek(self, earliest: float) -> bool:
        """Whether a key frame lies well between the current frame and the one wanted."""
        entries, target = self._stream.index_entries, int(earliest / self._tick)
        here = entries.search_timestamp(self._frame.pts, any_frame=True)
        key = entries.search_timestamp(target)
        return min(here, key) >= 0 and key > here + SEEK_COST

    def _seek(self, earliest: float) -> None:
        """Stand on a frame that is not after `earliest`, or on the first one of the file."""
        start, back = self._stream.start_time or 0, 0.0
        while True:
            offset = int((earliest - back) / self._tick)
            self._container.seek(max(offset, start), stream=self._stream, backward=True)
            self._coming = self._container.decode(self._stream)
            self._next()
            if offset <= start or (self._frame is not None and self._seconds() <= earliest):
                return
            back = 2 * back + 1.0  # frames may be stored before the key frame they come after


def _frame_times(path: Path) -> np.ndarray:
    container, stream = _open(path)
    with container:
        try:
            packets = [(p.pts, p.is_discard) for p in container.demux(stream) if p.size and p.pts is not None]
        except av.FFmpegError as error:
            raise StoreError(f"{path}: cannot be read ({error}); it may be truncated, fetch it again") from error
        if len(packets) < stream.frames:
            raise StoreError(
                f"{path}: holds {len(packets)} frames, its header says {stream.frames}; it is truncated, fetch it again"
            )
        if any(is_hidden for _, is_hidden in packets):
            raise StoreError(f"{path}: some of its frames are hidden; write it again: ffmpeg -i FILE NEW.mp4")
        return np.sort(np.array([pts for pts, _ in packets], np.int64)) * float(stream.time_base)


def _open(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    try:
        container = av.open(str(path))
    except av.error.FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (av.FFmpegError, OSError) as error:
        raise StoreError(unreadable(path, "video", error)) from error
    if not container.streams.video:
        container.close()
        raise StoreError(f"{path}: holds no video")
    return container, container.streams.video[0]
