"""Recordings of episodes: observed, measured, planned, commanded and stopped, as data to train on.

While an episode runs, a thread of its own appends everything to a file in the folder NAME.recording and syncs it to the
disk every half second. A crash loses no more; `archive.finish_recording` makes the archive NAME.zarr.zip at the end, or
later. archive.py describes its layout.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from unified_video_action.real.robots import archive
from unified_video_action.real.robots.archive import CODECS, ENDING
from unified_video_action.real.robots.interface import ArmCommand, ArmState, Frame

log = logging.getLogger(__name__)

FRAMES_WAITING = 90  # of all cameras, until they are written; more are lost
FRAMES_AT_ONCE = 10  # written before rows get their turn
ROWS_WAITING = 20_000  # states, commands, plans and events together
LOOK, SAFE = 0.02, 0.5  # seconds between two looks at what is waiting, and until it is on the disk


class EpisodeRecorder:
    """Records one episode; a context that ends the recording whatever happens.

    Every method returns at once, from any thread. Nobody may change an array after handing it over.

    Args:
        output: the archive, NAME.zarr.zip; neither it nor NAME.recording exists yet.
        cameras: how many there are.
        rate: rows per second.
        codec: "jpeg", or "jpegxl", which is up to a third smaller and takes some thirty times as long.
        attributes: what else is known of the episode: robot, checkpoint, instruction, ...; JSON.
        patient: wait for the writing rather than lose anything: for a simulation that is faster than time.
        only_motions: training's rows are only from each "start" event to the "stop" after it, each an episode.

    Raises:
        ValueError: another ending, codec or rate.
        FileExistsError: the episode was recorded already.
    """

    def __init__(
        self, output: str | Path, cameras: int = 1, rate: float = 30.0, codec: str = "jpeg",
        attributes: Mapping[str, Any] | None = None, patient: bool = False, only_motions: bool = False,
    ) -> None:  # fmt: skip
        self.output = Path(output)
        if not self.output.name.endswith(ENDING):
            raise ValueError(f"{output}: an episode's archive ends in {ENDING}")
        if codec not in CODECS or not rate > 0:
            raise ValueError(f"codec={codec!r}, rate={rate}: expected {' or '.join(CODECS)}, and a positive rate")
        self.folder = self.output.with_name(self.output.name.removesuffix(ENDING) + archive.UNFINISHED)
        if taken := [path for path in (self.output, self.folder) if path.exists()]:
            raise FileExistsError(f"{taken[0]} exists already; an episode is never recorded over another")
        self.lost: Counter[str] = Counter()  # frames, rows: how many did not fit
        self._codec, self._patient = CODECS[codec](level=95), patient
        self._about = {"cameras": cameras, "rate": rate, "codec": self._codec.get_config(), "started": time.time()}
        self._about |= {"attributes": dict(attributes or {}), "only_motions": only_motions}
        self._frames: deque[tuple[int, Frame]] = deque()
        self._rows: deque[tuple] = deque()
        self._newest = [-np.inf] * cameras  # time of each camera's newest frame
        self._ending = threading.Event()
        self._failure: Exception | None = None

    def __enter__(self) -> EpisodeRecorder:
        self.folder.mkdir(parents=True)
        self._lock = archive.lock(self.folder)
        (self.folder / archive.ABOUT).write_text(json.dumps(self._about))
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Write what is waiting, then the archive, unless the disk failed."""
        if error is not None:
            self.event(time.monotonic(), "error", f"{type(error).__name__}: {error}")
        if self.lost:
            lost = json.dumps(self.lost)
            log.warning("%s: not recorded, because the disk or this computer is too slow: %s", self.output, lost)
            self.event(time.monotonic(), "lost", lost)
        self._ending.set()
        self._thread.join()
        self._lock.close()
        if self._failure is not None:
            log.error("%s: the recording broke off: %s; what is there can be finished", self.folder, self._failure)
            return
        try:
            archive.finish_recording(self.folder)
        except OSError as error:  # of a full disk, say; whatever else goes on must not end with it
            log.error("%s: no archive can be written: %s; the folder is left, and can be finished", self.folder, error)

    def frame(self, camera: int, frame: Frame) -> None:
        """A frame of a camera; the same one again is passed over."""
        if frame.time > self._newest[camera]:
            self._newest[camera] = frame.time
            self._keep(self._frames, (camera, frame), FRAMES_WAITING, "frames")

    def state(self, state: ArmState) -> None:
        self._keep_row("state", state.time, state.pose, state.gripper, state.joints, state.joint_velocities)

    def command(self, command: ArmCommand, sent: float) -> None:
        """A command that was sent to the arm at the time `sent`."""
        self._keep_row("command", sent, command.time, command.pose, command.gripper)

    def plan(self, observed: float, received: float, actions: np.ndarray) -> None:
        """An action chunk (A, D) in the policy's units, the time of its newest frame, and that of its arrival."""
        self._keep_row("plan", observed, received, actions)

    def event(self, time: float, kind: str, text: str) -> None:
        """What is worth a mark in the plot: "start" and "stop" of a motion, an altered command ("clip"), ..."""
        self._keep_row("event", time, kind, text)

    def _keep_row(self, *row: Any) -> None:
        self._keep(self._rows, row, ROWS_WAITING, "rows")

    def _keep(self, waiting: deque, item: Any, most: int, what: str) -> None:
        while len(waiting) >= most:
            if not self._patient or self._failure is not None:
                self.lost[what] += 1
                return
            time.sleep(LOOK)
        waiting.append(item)

    def _work(self) -> None:
        """The thread that writes."""
        try:
            with open(self.folder / archive.RECORDS, "ab") as file:
                self._write(file)
        except Exception as error:  # a full disk, say: reported at the end, the arm goes on
            self._failure = error
            log.error("%s: nothing is recorded any more: %s", self.folder, error)

    def _write(self, file: BinaryIO) -> None:
        safe = time.monotonic()
        while True:
            ending = self._ending.is_set()  # before the last look at what is waiting
            for _ in range(len(self._rows)):
                file.write(msgpack.packb(self._rows.popleft(), default=lambda array: array.tolist()))
            for _ in range(min(len(self._frames), FRAMES_AT_ONCE)):
                camera, frame = self._frames.popleft()
                encoded = self._codec.encode(frame.image[None])
                file.write(msgpack.packb(["frame", camera, frame.time, frame.image.shape[:2], encoded]))
            if ending or time.monotonic() > safe + SAFE:
                safe = time.monotonic()
                file.flush()
                os.fsync(file.fileno())
            if ending and not self._frames:
                return
            time.sleep(0 if self._frames else LOOK)
