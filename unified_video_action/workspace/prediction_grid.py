"""The prediction grid: one picture that compares imagined frames with true ones, and action chunks with each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from unified_video_action.evaluation.world_model import WorldModel

TILE = 96  # smallest side of a frame, pixels
GAP = 3
LABELS, HEADING = 88, 22  # width of the column and height of the line of labels
PAPER, INK, FAINT = (226, 229, 234), (30, 33, 40), (95, 101, 113)
ROWS = {"imagined": ("policy_and_video", "video"), "with actions": ("forward_dynamics",)}  # label -> rows of frames
CHUNKS = {  # label -> row of actions, None for the recorded ones; and colour
    "recorded": (None, (18, 140, 80)),
    "from frames": ("inverse_dynamics", (214, 60, 30)),
    "policy": ("policy", (150, 70, 200)),
}
Chunks = Mapping[str, tuple[np.ndarray, tuple[int, int, int]]]  # label -> (B, A, 2) x, y in pixels, and colour


def draw_prediction_grid(path: Path, model: WorldModel) -> bool:
    """Draw what a policy makes of all of a model's windows into a PNG; False: it makes no frames, nothing is drawn.

    For every window it has what was recorded, what the policy imagines from history, and what it imagines from the
    recorded actions; beside them, where actions are points in the picture, chunks over the newest frame: as recorded,
    as inverse dynamics reads them from the future frames, and as the policy plans them.
    """
    rows = {label: next((name for name in names if name in model.frame_rows), None) for label, names in ROWS.items()}
    imagined = {label: model.frames(name) for label, name in rows.items() if name is not None}
    if not imagined:
        return False
    windows, chunks = model.windows, {}
    for label, (name, colour) in CHUNKS.items():
        if model.reader is not None and (name is None or name in model.action_rows):
            actions = windows.batch["action"] if name is None else model.actions(name)
            points = model.reader.in_picture(actions.numpy(), windows.future.shape[-1])
            if points is not None:
                chunks[label] = points, colour
    compose(path, windows.history, windows.future, imagined, windows.batch["frame_is_pad"], chunks)
    return True


def compose(
    path: Path, history: Tensor, future: Tensor, imagined: Mapping[str, Tensor], is_pad: Tensor, chunks: Chunks
) -> None:
    """Write a PNG with rows for every sample: what happened, and below it what the policy imagined.

    Args:
        history: uint8 (B, H, 3, S, S). future, and imagined by label: uint8 (B, F, 3, S, S).
        is_pad: (B, F) bool, frames beyond the episode's end; they are drawn pale.
        chunks: drawn over the newest frame, in the space below the history.
    """
    seen, steps = history.shape[1], history.shape[1] + future.shape[1]
    scale = max(1, -(-TILE // history.shape[-1]))
    side = history.shape[-1] * scale
    step = side + GAP
    block = (1 + len(imagined)) * step + 2 * GAP  # height of a sample's rows
    grid = Image.new("RGB", (LABELS + steps * step + GAP, HEADING + len(history) * block), PAPER)
    pen = ImageDraw.Draw(grid)
    pen.text((LABELS, 5), "history", FAINT)
    pen.text((LABELS + seen * step, 5), "future", FAINT)

    def draw_row(label: str, frames: Tensor, pale: Tensor, first: int, left: int, top: int) -> None:
        """Frames uint8 (T, 3, S, S) from column `first` on."""
        pen.text((left, top + side // 2 - 5), label, INK)
        images = interpolate(frames.float(), scale_factor=float(scale), mode="nearest")  # (T, 3, s, s)
        images = torch.where(pale[:, None, None, None], 170 + images / 3, images).to(torch.uint8)
        for column, image in enumerate(images.permute(0, 2, 3, 1).numpy(), start=first):
            grid.paste(Image.fromarray(image), (LABELS + column * step, top))

    def draw_chunks(sample: int, left: int, top: int, large: int) -> None:
        """The newest frame in a square of `large` pixels, and the chunks over it, each from its first action on."""
        newest = Image.fromarray(history[sample, -1].permute(1, 2, 0).numpy()).resize((large, large))
        over, factor = ImageDraw.Draw(newest), large / history.shape[-1]
        for line, (label, (points, colour)) in enumerate(chunks.items()):
            line_points = [tuple(point) for point in (points[sample] * factor).tolist()]
            over.line(line_points, colour, 2)
            x, y = line_points[-1]
            over.ellipse((x - 4, y - 4, x + 4, y + 4), colour)
            pen.text((left + large + 8, top + 14 * line), label, colour)
        grid.paste(newest, (left, top))

    for sample, pale in enumerate(is_pad):
        top = HEADING + sample * block
        draw_row("recorded", history[sample], torch.zeros(seen, dtype=torch.bool), 0, 8, top)
        draw_row("", future[sample], pale, seen, 8, top)
        for row, (label, frames) in enumerate(imagined.items(), start=1):
            beside = LABELS + seen * step - 8 - 6 * len(label)  # where the space below the history ends
            draw_row(label, frames[sample], pale, seen, beside if chunks else 8, top + row * step)
        large = min(len(imagined) * step - GAP, seen * step - GAP - 80)
        if chunks and large > 0:
            draw_chunks(sample, LABELS, top + step, large)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
