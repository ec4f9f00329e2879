"""Measure a camera's latency: it looks at a window of this computer that flashes at random.

python scripts/measure_camera_latency.py --device 0 --capture 720 1280 --fps 60 --fourcc MJPG

Point the camera at the screen so that the window fills its view, and dim the room. The figure is the time from the
light to the frame's receipt, plus what the screen itself needs to show a picture: 5 to 30 ms, which its maker or a test
of screens says; give it as --screen. Put the result into the robot's configuration as the camera's `latency`.
"""

import logging
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from unified_video_action.real.robots.camera import VideoCamera
from unified_video_action.real.robots.interface import RobotError
from unified_video_action.workspace.commands import mistakes, script_parser

log = logging.getLogger("measure_camera_latency")

LONGEST, STEP = 0.6, 0.001  # seconds: of the latencies that are tried
ALIKE = 0.8  # correlation of what was shown and what was seen that makes a measurement
FASTEST, SLOWEST = 0.12, 0.45  # seconds between two changes of the window
WINDOW = "point the camera here"


class Measurement(NamedTuple):
    """Seconds of latency, and the correlation between what was shown and what was seen then, at most 1."""

    latency: float
    agreement: float


def brightness(image: np.ndarray) -> float:
    """Of the middle of a frame (H, W, 3)."""
    height, width = image.shape[:2]
    return float(image[height // 4 : -(height // 4), width // 4 : -(width // 4)].mean())


def measure(changes: Sequence[float], times: np.ndarray, seen: np.ndarray, exposure: float = 0.01) -> Measurement:
    """The latency at which the frames' brightness agrees best with the window's.

    Args:
        changes: times at which the window changed from dark to bright, to dark, ..., the first time to bright.
        times: (n,) when frames were received, by the same clock.
        seen: (n,) their brightness.
        exposure: seconds during which a frame gathers light.

    Raises:
        ValueError: too few frames, or the frames do not show the window.
    """
    if len(times) < 20 or len(changes) < 6:
        raise ValueError(f"{len(times)} frames of {len(changes)} changes: too few to measure; take longer")
    edges = np.asarray(changes, np.float64)
    # Seconds of brightness from the first change on, which makes a frame's light a difference of two of its values.
    at_edges = np.concatenate([[0], np.cumsum(np.diff(edges) * (np.arange(len(edges) - 1) % 2 == 0))])
    inside = (times - LONGEST - exposure > edges[0]) & (times < edges[-1])
    if inside.sum() < 10 or seen[inside].std() < 1e-6:
        raise ValueError("the frames never change: the camera does not see the window")
    delays = np.arange(0, LONGEST, STEP)
    alike = np.zeros(len(delays))
    for index, delay in enumerate(delays):
        begun, ended = (np.interp(times[inside] - delay - before, edges, at_edges) for before in (exposure, 0))
        if (ended - begun).std() > 1e-9:
            alike[index] = np.corrcoef(ended - begun, seen[inside])[0, 1]
    best = alike.max()
    if best < ALIKE:
        raise ValueError(
            f"what the camera saw agrees with the window only to {best:.2f} (needed: {ALIKE}); fill its view "
            "with the window, dim the room, and switch its automatic exposure off"
        )
    # Around the best one the agreement is flat while an edge falls between frames: its middle is the estimate.
    flat = np.flatnonzero(alike > best - 0.01 * (1 - min(alike.min(), 0)))
    return Measurement(float(delays[flat].mean() + exposure / 2), float(best))


def flash(camera: VideoCamera, seconds: float) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Let the window flash before the camera: times of its changes, of frames (n,), and their brightness (n,).

    Raises ValueError where no window can be shown.
    """
    rng, shades = np.random.default_rng(0), [np.full((600, 800), shade, np.uint8) for shade in (0, 255)]
    if not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        raise ValueError("no window can be shown: there is no DISPLAY; run this on a computer with a screen")
    cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
    changes, times, seen, bright = [], [], [], False
    end, following = time.monotonic() + seconds, 0.0
    while time.monotonic() < end:
        if time.monotonic() >= following:
            bright = not bright
            cv2.imshow(WINDOW, shades[bright])
            cv2.waitKey(1)
            changes.append(time.monotonic())
            following = changes[-1] + rng.uniform(FASTEST, SLOWEST)
        frame = camera.latest()
        if frame is not None and (not times or frame.time > times[-1]):
            times.append(frame.time)  # received, because the camera's latency is set to 0
            seen.append(brightness(frame.image))
        time.sleep(0.001)
    cv2.destroyWindow(WINDOW)
    return changes, np.array(times), np.array(seen)


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--device", default="0", help="number or path of the camera (default 0)")
    parser.add_argument("--capture", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="requested size")
    parser.add_argument("--fps", type=float, help="requested frame rate")
    parser.add_argument("--fourcc", help="requested pixel format, such as MJPG")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of flashing (default 20)")
    parser.add_argument("--screen", type=float, default=0.0, help="latency of the screen, seconds (default 0)")
    options = parser.parse_args(arguments)
    device = int(options.device) if options.device.isdigit() else options.device
    asked = options.capture, options.fps, options.fourcc
    try:
        with mistakes(parser), VideoCamera(device, 0.0, (64, 64), *asked) as camera:
            found = measure(*flash(camera, options.seconds))
    except RobotError as error:
        parser.error(str(error))
    latency = found.latency - options.screen
    log.info("latency: %.3f   # seconds; what was seen agrees to %.2f with what was shown", latency, found.agreement)


if __name__ == "__main__":
    main()
