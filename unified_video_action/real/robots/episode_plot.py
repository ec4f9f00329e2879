"""Pictures of a recorded episode: a video, a grid of frames, and a plot of commanded and measured poses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial.transform import Rotation

from unified_video_action.real.robots.archive import Recording, curves

COMMANDED, MEASURED, CLIP, STOP = "#2f6fde", "#e8762b", "#d9a400", "#d3322f"
LEAST = {"metres": 0.02, "degrees": 2.0, "mm": 4.0, "ms": 20.0}  # that an axis spans, so that noise looks like noise
STOPS = ("stop", "error")  # kinds of events that end something


def plot_poses(recording: Recording) -> Figure:
    """Position, rotation and gripper width over time, commanded and measured, their distance, and the plans' delay."""
    arrays = recording.arrays
    drawn = {colour: curves(arrays, kind) for kind, colour in (("command", COMMANDED), ("state", MEASURED))}
    drawn = {colour: curve for colour, curve in drawn.items() if len(curve[0])}
    figure = Figure((13, 16))
    figure.subplots_adjust(0.06, 0.03, 0.98, 0.93, hspace=0.25)
    axes = figure.subplots(5, 2, sharex=True)
    for colour, (times, poses, grippers) in drawn.items():
        first = list(drawn.values())[-1][1][0, :3, :3]  # rotations are seen from the first measured one
        turns = Rotation.from_matrix(poses[:, :3, :3] @ first.T).as_rotvec(degrees=True)
        for row in range(3):
            axes[row, 0].plot(times, poses[:, row, 3], color=colour)
            axes[row, 1].plot(times, turns[:, row], color=colour)
        axes[3, 0].plot(times, 1000 * grippers, color=colour)
    if len(drawn) == 2:
        (commanded, targets, _), (measured, poses, _) = drawn.values()
        inside = (measured >= commanded[0]) & (measured <= commanded[-1])
        there = np.stack([np.interp(measured[inside], commanded, targets[:, axis, 3]) for axis in range(3)], 1)
        axes[3, 1].plot(measured[inside], 1000 * np.linalg.norm(there - poses[inside, :3, 3], axis=1), color="black")
    late = arrays["plan_received"] - arrays["plan_observed"]
    axes[4, 0].plot(arrays["plan_received"], 1000 * late, ".", color=COMMANDED)
    labels = [f"{axis}, metres" for axis in "xyz"] + [f"about {axis}, degrees" for axis in "xyz"]
    labels += ["gripper width, mm", "commanded and measured apart, mm", "plans come after, ms"]
    for panel, label in zip([*axes[:3, 0], *axes[:3, 1], axes[3, 0], axes[3, 1], axes[4, 0]], labels):
        _finish(panel, label, recording)
    _list_events(axes[4, 1], recording)
    title = " · ".join(filter(None, [recording.name, recording.instruction, f"{recording.seconds:.1f} s"]))
    legend = "blue: commanded, orange: measured, yellow: clipped, red: stopped"
    figure.suptitle(f"{title}\n{legend}", parse_math=False)
    return figure


def _finish(panel: Axes, label: str, recording: Recording) -> None:
    panel.set_title(label, loc="left", fontsize=10)
    panel.set_xlim(0, max(recording.seconds, 1e-3))
    panel.grid(alpha=0.3)
    low, high = panel.get_ylim()
    margin = max(LEAST[label.rsplit(", ")[-1]] - (high - low), 0) / 2
    panel.set_ylim(low - margin, high + margin)
    for event in recording.events:
        if event["kind"] in STOPS:
            panel.axvline(event["time"], color=STOP)
        elif event["kind"] == "clip":
            panel.axvline(event["time"], 0, 0.05, color=CLIP)


def _list_events(panel: Axes, recording: Recording) -> None:
    panel.axis("off")
    others = [event for event in recording.events if event["kind"] != "clip"]
    text = [f"{event['time']:7.2f} s  {event['kind']}: {event['text']}"[:90] for event in others[:12]]
    if clips := len(recording.events) - len(others):
        text.append(f"clips: {clips}")
    panel.text(0, 1, "\n".join(text), va="top", fontsize=8, family="monospace", parse_math=False)


def frame_grid(recording: Recording, columns: int = 6, rows: int = 4) -> Figure:
    """Frames of the first camera, evenly spread over the episode, which has frames."""
    count = min(columns * rows, len(recording.row_time))
    chosen = np.linspace(0, len(recording.row_time) - 1, count).round().astype(int)
    rows = math.ceil(count / columns)
    height, width = recording.frames[0].shape[1:3]
    figure = Figure((2.6 * columns, (2.6 * height / width + 0.3) * rows))
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.96, 0.02, 0.15)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    for panel, row in zip(panels, chosen):
        panel.imshow(recording.frames[0][int(row)])
        panel.set_title(_caption(recording, recording.row_time[row]), fontsize=8)
    return figure


def video_frames(recording: Recording, height: int = 448) -> Iterator[np.ndarray]:
    """Every row: the frames of all cameras, the time, and the newest event of the last second.

    Yields uint8 (H, W, 3), of even sizes.
    """
    widths = [round(height * frames.shape[2] / frames.shape[1]) for frames in recording.frames]
    width = (sum(widths) + 6 * (len(widths) - 1)) // 2 * 2
    end = max(recording.seconds, 1e-3)
    for row, time in enumerate(recording.row_time):
        canvas, left = Image.new("RGB", (width, (height + 58) // 2 * 2)), 0
        for frames, wide in zip(recording.frames, widths):
            canvas.paste(Image.fromarray(frames[row]).resize((wide, height), Image.Resampling.BICUBIC), (left, 0))
            left += wide + 6
        pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
        pen.text((8, height + 4), _caption(recording, time), "white", font)
        recent = [event for event in recording.events if time - 1 < event["time"] <= time]
        if recent:
            colour = STOP if recent[-1]["kind"] in STOPS else CLIP
            pen.text((8, height + 24), f"{recent[-1]['kind']}: {recent[-1]['text']}"[: width // 8], colour, font)
        pen.rectangle((0, height + 48, width * min(time / end, 1.0), height + 51), COMMANDED)
        yield np.asarray(canvas)


def _caption(recording: Recording, time: float) -> str:
    width = np.interp(time, recording.arrays["state_time"], recording.arrays["state_gripper"])
    return f"{time:.2f} s   gripper {1000 * width:.0f} mm"
