"""Pictures of a recorded episode: a film, a sheet of frames, and a plot of where the hand was told to be and was."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import zarr
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial.transform import Rotation
from zarr.storage import ZipStore

from unified_video_action.dataset.formats.pictures import register_pictures
from unified_video_action.env_runner.charts import number, ticks

PAPER, INK, FAINT, GRID = "#ffffff", "#1d2433", "#6b7585", "#e4e7ec"
TOLD, REACHED, CLIP, STOP = "#2f6fde", "#e8762b", "#d9a400", "#d3322f"
SCALE = 2  # plots are drawn larger and then made smaller, so that lines are smooth
PANEL, MARGIN, LEFT, BOTTOM = (640, 190), 26, 64, 34  # px
LEAST = {"metres": 0.02, "degrees": 2.0, "mm": 4.0, "ms": 20.0}  # that a panel spans, so that noise looks like noise
STOPS = ("stop", "error")  # kinds of events that end something
MOST_EVENTS = 12  # named below a plot
TILE = 224  # px, height of a frame on a sheet


@dataclass(frozen=True)
class Recording:
    """An episode's archive, opened; times are seconds since its first state."""

    name: str
    frames: tuple[zarr.Array, ...]  # of each camera uint8 (N, H, W, 3)
    row_time: np.ndarray  # (N,)
    arrays: dict[str, np.ndarray]  # those below recording/, by name
    events: tuple[dict, ...]  # time, kind, text
    rate: float  # rows per second
    instruction: str

    @classmethod
    def open(cls, path: Path) -> Recording:
        """Raises FileNotFoundError, and ValueError for what is no recorded episode."""
        register_pictures()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; give an episode's NAME.zarr.zip")
        try:
            root = zarr.open_group(ZipStore(path, mode="r"), mode="r")
            group = root["recording"]
            about = dict(group.attrs)
            arrays = {name: array[...] for name, array in group.arrays()}
        except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: no recorded episode ({error})") from error
        starts = [arrays[name][0] for name in ("state_time", "row_time", "command_time") if len(arrays[name])]
        began = starts[0] if starts else 0.0
        for name in ("state_time", "command_time", "command_sent", "plan_observed", "plan_received"):
            arrays[name] = arrays[name] - began
        events = tuple({**event, "time": event["time"] - began} for event in about["events"])
        cameras = [root[f"data/camera{n}_rgb"] for n in range(about["cameras"]) if f"camera{n}_rgb" in root["data"]]
        instruction = str(root.attrs.get("instruction", ""))
        times = arrays["row_time"] - began
        return cls(path.name, tuple(cameras), times, arrays, events, about["rate"], instruction)

    @property
    def seconds(self) -> float:
        ends = [self.arrays[name] for name in ("state_time", "command_time")] + [self.row_time]
        return max([float(times[-1]) for times in ends if len(times)], default=0.0)

    def marks(self, stops: bool) -> list[dict]:
        return [event for event in self.events if (event["kind"] in STOPS) == stops]


def draw_plot(recording: Recording) -> Image.Image:
    """Position, rotation and opening over time, told and reached, how far they are apart, and how late plans come."""
    told, reached = (_curves(recording.arrays, kind) for kind in ("command", "state"))
    first = next((curves for curves in (reached, told) if curves is not None), None)
    panels: list[tuple[str, list[tuple[np.ndarray, np.ndarray, str]]]] = []
    for row, (place, turn) in enumerate(zip(("x", "y", "z"), ("about x", "about y", "about z"))):
        for group, label in ((1, f"{place}, metres"), (2, f"turned {turn}, degrees")):
            lines = []
            for curves, colour in ((told, TOLD), (reached, REACHED)):
                if curves is not None:
                    values = curves[group] if group == 1 else _turned(curves[2], first[2])
                    lines.append((curves[0], values[:, row], colour))
            panels.append((label, lines))
    grips = [(curves[0], 1000 * curves[3], c) for curves, c in ((told, TOLD), (reached, REACHED)) if curves is not None]
    panels.append(("gripper, mm", grips))
    panels.append(("told and reached apart, mm", [_apart(told, reached)] if told and reached else []))
    late = recording.arrays["plan_received"]
    if len(late):
        panels.append(("plans come after, ms", [(late, 1000 * (late - recording.arrays["plan_observed"]), "points")]))
    return _sheet_of_panels(recording, panels)


def _curves(arrays: dict[str, np.ndarray], kind: str) -> tuple | None:
    """Times (n,), positions (n, 3), rotations (n, 3, 3), openings (n,); None where there are none."""
    times, poses = arrays[f"{kind}_time"], arrays[f"{kind}_pose"]
    good = np.isfinite(poses).all((1, 2))
    if not good.any():
        return None
    return times[good], poses[good, :3, 3], poses[good, :3, :3], arrays[f"{kind}_gripper"][good]


def _turned(rotations: np.ndarray, since: np.ndarray) -> np.ndarray:
    """(n, 3) degrees about the base's axes since the first of `since`, without jumps of a whole turn."""
    turns = Rotation.from_matrix(rotations @ since[0].T).as_rotvec()
    return np.degrees(turns)


def _apart(told: tuple, reached: tuple) -> tuple[np.ndarray, np.ndarray, str]:
    inside = (reached[0] >= told[0][0]) & (reached[0] <= told[0][-1])
    order = np.argsort(told[0], kind="stable")
    there = [np.interp(reached[0][inside], told[0][order], told[1][order, axis]) for axis in range(3)]
    return reached[0][inside], 1000 * np.linalg.norm(np.stack(there, 1) - reached[1][inside], axis=1), INK


def _sheet_of_panels(recording: Recording, panels: Sequence[tuple[str, list]]) -> Image.Image:
    columns, rows = 2, math.ceil(len(panels) / 2)
    named = [event for event in recording.events if event["kind"] != "clip"][:MOST_EVENTS]
    clips = sum(event["kind"] == "clip" for event in recording.events)
    width, top = columns * PANEL[0] + MARGIN, 64
    height = top + rows * PANEL[1] + 20 + 18 * (len(named) + bool(clips)) + 14
    image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    pen = ImageDraw.Draw(image)
    title = " · ".join(filter(None, [recording.name, recording.instruction, f"{recording.seconds:.1f} s"]))
    _text(pen, (MARGIN, 12), title, INK, 17)
    left = MARGIN
    for label, colour in (("told", TOLD), ("reached", REACHED), ("clipped", CLIP), ("stopped", STOP)):
        pen.line([_at(left, 47), _at(left + 22, 47)], colour, 3 * SCALE)
        _text(pen, (left + 28, 39), label, INK, 13)
        left += 44 + round(_font(13).getlength(label) / SCALE)
    for place, (label, lines) in enumerate(panels):
        _panel(pen, (place % columns * PANEL[0], top + place // columns * PANEL[1]), label, lines, recording)
    line = top + rows * PANEL[1] + 20
    for event in named:
        colour = STOP if event["kind"] in STOPS else INK
        _text(pen, (MARGIN, line), f"{event['time']:7.2f} s  {event['kind']}: {event['text']}"[:170], colour, 13)
        line += 18
    if clips:
        _text(pen, (MARGIN, line), f"clips: {clips}", INK, 13)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _panel(pen: ImageDraw.ImageDraw, corner: tuple[int, int], label: str, lines: list, recording: Recording) -> None:
    x0, x1 = corner[0] + LEFT, corner[0] + PANEL[0] - 8
    y0, y1 = corner[1] + 22, corner[1] + PANEL[1] - BOTTOM
    end = max(recording.seconds, 1e-3)
    values = np.concatenate([np.asarray(line[1]) for line in lines]) if lines else np.zeros(1)
    low, high = float(values.min()), float(values.max())
    room = max(0.06 * (high - low), (LEAST[label.rsplit(", ")[-1]] - (high - low)) / 2)
    low, high = low - room, high + room

    def across(time: float) -> float:
        return x0 + (x1 - x0) * min(max(time / end, 0.0), 1.0)

    def up(value: float) -> float:
        return y1 - (y1 - y0) * (value - low) / (high - low)

    _text(pen, (x0, corner[1] + 3), label, INK, 13)
    for value in ticks(low, high, 4):
        pen.line([_at(x0, up(value)), _at(x1, up(value))], GRID, SCALE)
        _text(pen, (x0 - 6, up(value)), number(value), FAINT, 11, "rm")
    for time in ticks(0, end, 8):
        pen.line([_at(across(time), y1), _at(across(time), y1 + 4)], FAINT, SCALE)
        _text(pen, (across(time), y1 + 7), f"{time:g} s", FAINT, 11, "ma")
    pen.line([_at(x0, y1), _at(x1, y1)], FAINT, SCALE)
    for event in recording.marks(stops=True):
        pen.line([_at(across(event["time"]), y0), _at(across(event["time"]), y1)], STOP, round(1.5 * SCALE))
    for event in recording.events:
        if event["kind"] == "clip":
            pen.line([_at(across(event["time"]), y1 - 7), _at(across(event["time"]), y1)], CLIP, round(1.5 * SCALE))
    for times, heights, colour in lines:
        points = [_at(across(time), up(value)) for time, value in zip(times, heights)]
        if colour == "points":
            for x, y in points:
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), TOLD)
        elif len(points) > 1:
            pen.line(points, colour, round(1.5 * SCALE), joint="curve")


def draw_sheet(recording: Recording, columns: int = 6, rows: int = 4) -> Image.Image:
    """Frames of the first camera, evenly spread over the episode.

    Raises:
        ValueError: there is no frame.
    """
    count = min(columns * rows, _require_frames(recording))
    chosen = np.linspace(0, len(recording.row_time) - 1, count).round().astype(int)
    rows = math.ceil(count / columns)
    shape = recording.frames[0].shape
    width = round(TILE * shape[2] / shape[1])
    sheet = Image.new("RGB", (columns * (width + 4) + 4, rows * (TILE + 24) + 4), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, row in enumerate(chosen):
        x, y = 4 + place % columns * (width + 4), 4 + place // columns * (TILE + 24)
        picture = Image.fromarray(recording.frames[0][int(row)])
        sheet.paste(picture.resize((width, TILE), Image.Resampling.BICUBIC), (x, y))
        opening = np.interp(recording.row_time[row], *_openings(recording))
        label = f"{recording.row_time[row]:.2f} s   open {1000 * opening:.0f} mm"
        pen.text((x + 2, y + TILE + 3), label, INK, ImageFont.load_default(13))
    return sheet


def film_frames(recording: Recording, height: int = 448) -> Iterator[np.ndarray]:
    """Every row: what the cameras saw, the time, and what happened in the last second; uint8 (H, W, 3), even sizes.

    Raises:
        ValueError: there is no frame.
    """
    _require_frames(recording)
    widths = [round(height * frames.shape[2] / frames.shape[1]) for frames in recording.frames]
    width = (sum(widths) + 6 * (len(widths) - 1)) // 2 * 2
    for row, time in enumerate(recording.row_time):
        canvas = Image.new("RGB", (width, (height + 58) // 2 * 2), INK)
        left = 0
        for frames, wide in zip(recording.frames, widths):
            picture = Image.fromarray(frames[row]).resize((wide, height), Image.Resampling.BICUBIC)
            canvas.paste(picture, (left, 0))
            left += wide + 6
        pen = ImageDraw.Draw(canvas)
        opening = np.interp(time, *_openings(recording))
        pen.text((8, height + 4), f"{time:6.2f} s   open {1000 * opening:.0f} mm", PAPER, ImageFont.load_default(15))
        recent = [event for event in recording.events if time - 1 < event["time"] <= time]
        if recent:
            colour = STOP if recent[-1]["kind"] in STOPS else CLIP
            told = f"{recent[-1]['kind']}: {recent[-1]['text']}"[: width // 8]
            pen.text((8, height + 24), told, colour, ImageFont.load_default(14))
        _timeline(pen, recording, width, height + 48, float(time))
        yield np.asarray(canvas)


def _timeline(pen: ImageDraw.ImageDraw, recording: Recording, width: int, top: int, now: float) -> None:
    end = max(recording.seconds, 1e-3)
    pen.rectangle((0, top, width, top + 3), FAINT)
    pen.rectangle((0, top, width * min(now / end, 1.0), top + 3), TOLD)
    for event in recording.events:
        x = width * min(max(event["time"] / end, 0.0), 1.0)
        pen.line([(x, top - 3), (x, top + 6)], STOP if event["kind"] in STOPS else CLIP, 2)


def _openings(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    return recording.arrays["state_time"], recording.arrays["state_gripper"]


def _require_frames(recording: Recording) -> int:
    if not recording.frames or not len(recording.row_time):
        raise ValueError(f"{recording.name}: holds no frames, so there is nothing to film")
    return len(recording.row_time)


def _at(x: float, y: float) -> tuple[float, float]:
    return x * SCALE, y * SCALE


def _text(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: str, size: int, anchor="la") -> None:
    pen.text(_at(*at), text, colour, _font(size), anchor=anchor)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * SCALE)
