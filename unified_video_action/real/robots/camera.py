"""Cameras that OpenCV opens: of V4L2, or a video file that is played as if it were one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import cv2

from unified_video_action.dataset.frame_fit import Fit, FrameMask
from unified_video_action.real.robots.interface import Camera, Frame, RobotError

log = logging.getLogger(__name__)

FIRST_FRAME = 5.0  # seconds until a camera must have given one
RETRY = 1.0  # seconds between two attempts to open a camera that was lost
FPS_OFF = 0.05  # share by which the rate may differ from what was asked for


class VideoCamera(Camera):
    """A thread reads frame after frame and keeps the newest, so that none waits in a queue and grows old.

    Frames are cropped to the middle part of the wanted shape, as UMI's wide frames become square, and resized.
    A camera that is lost is opened again and again; until it is back its last frame grows old.

    Args:
        device: number (0 is /dev/video0), path such as /dev/v4l/by-id/..., or a video file.
        latency: seconds from the light to the frame's receipt; scripts/measure_camera_latency.py measures it.
        size: (height, width) of the frames delivered, pixels.
        capture: (height, width) to ask the camera for; None: as it comes.
        fps, fourcc: rate, and format such as MJPG, to ask for; None: as they come.
        mask: what is blackened, as it was in the recordings that the policy learned from: "mirrors", or polygons in
            shares of the frame; None: nothing.

    Raises:
        ValueError: a number that makes no sense; names it.
    """

    def __init__(
        self, device: int | str, latency: float = 0.1, size: Sequence[int] = (224, 224),
        capture: Sequence[int] | None = None, fps: float | None = None, fourcc: str | None = None, mask: object = None,
    ) -> None:  # fmt: skip
        if not 0 <= latency < 2:
            raise ValueError(f"camera {device}: latency={latency}: expected seconds, 0 to 2")
        if any(len(each) != 2 or min(each) < 1 for each in (size, capture or size)):
            raise ValueError(f"camera {device}: size={size}, capture={capture}: expected [height, width]")
        if fourcc is not None and len(fourcc) != 4:
            raise ValueError(f"camera {device}: fourcc={fourcc!r}: expected four letters such as MJPG")
        self.device, self.latency, self.size = device, latency, (int(size[0]), int(size[1]))
        self.capture, self.fps, self.fourcc = capture, fps, fourcc
        self._fit, self._mask = Fit(self.size), FrameMask.parse(mask, f"camera {device}")
        self._newest: Frame | None = None
        self._thread: threading.Thread | None = None

    def connect(self) -> None:
        if self._thread is not None:
            return
        source = self._open()
        self._newest, self._ending, self._first = None, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), name=f"camera {self.device}", daemon=True)
        self._thread.start()
        if not self._first.wait(FIRST_FRAME):
            self.close()
            raise RobotError(f"camera {self.device}: opened, but no frame came within {FIRST_FRAME:g} s; is it in use?")

    def latest(self) -> Frame | None:
        return self._newest

    def close(self) -> None:
        if self._thread is not None:
            self._ending.set()
            self._thread.join()
            self._thread = None

    def _open(self) -> cv2.VideoCapture:
        """Raises RobotError: nothing opens, or it gives something else than was asked for; says what."""
        source = cv2.VideoCapture(self.device)
        if not source.isOpened():
            source.release()
            raise RobotError(
                f"camera {self.device}: cannot be opened; `v4l2-ctl --list-devices` names those that are plugged in, "
                "and your user must be in the group video"
            )
        source.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        height, width = self.capture or (None, None)
        asked = {  # the format first, because sizes and rates depend on it
            cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*self.fourcc) if self.fourcc is not None else None,
            cv2.CAP_PROP_FRAME_HEIGHT: height,
            cv2.CAP_PROP_FRAME_WIDTH: width,
            cv2.CAP_PROP_FPS: self.fps,
        }
        for key, value in asked.items():
            if value is not None:
                source.set(key, value)
        code, *given, rate = (source.get(key) for key in asked)
        code = int(code).to_bytes(4, "little").decode("latin-1")
        wrong = []
        if self.capture is not None and given != list(self.capture):
            wrong.append(f"capture={list(self.capture)} was asked for, it gives {[int(size) for size in given]}")
        if self.fps is not None and abs(rate - self.fps) > FPS_OFF * self.fps:
            wrong.append(f"fps={self.fps:g} was asked for, it gives {rate:g}")
        if self.fourcc is not None and code.upper() != self.fourcc.upper():
            wrong.append(f"fourcc={self.fourcc} was asked for, it gives {code!r}")
        if wrong:
            source.release()
            raise RobotError(f"camera {self.device}: {'; '.join(wrong)}; see `v4l2-ctl --list-formats-ext`")
        return source

    def _run(self, source: cv2.VideoCapture | None) -> None:
        due = time.monotonic()
        while not self._ending.is_set():
            if source is None:
                source = self._again()
                continue
            if source.get(cv2.CAP_PROP_FRAME_COUNT) > 0:  # a file, whose frames come at its rate
                period = 1 / max(source.get(cv2.CAP_PROP_FPS), 1.0)
                due = max(due + period, time.monotonic() - period)
                self._ending.wait(max(due - time.monotonic(), 0))
            grabbed, received = source.grab(), time.monotonic()
            there, image = source.retrieve() if grabbed else (False, None)
            if there:
                frame = cv2.cvtColor(self._fit(image), cv2.COLOR_BGR2RGB)
                frame = frame if self._mask is None else self._mask(frame)
                self._newest = Frame(received - self.latency, frame)
                self._first.set()
            elif not self._ending.is_set():
                log.error("camera %s: no frame comes any more; it is opened again", self.device)
                source.release()
                source = None
        if source is not None:
            source.release()

    def _again(self) -> cv2.VideoCapture | None:
        """Open a camera that was lost, after a while; None where that fails."""
        if self._ending.wait(RETRY):
            return None
        try:
            source = self._open()
        except RobotError as error:
            log.warning("%s", error)
            return None
        log.info("camera %s: is back", self.device)
        return source
