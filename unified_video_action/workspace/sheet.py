"""One picture that compares imagined frames with true ones."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

TILE = 96  # smallest side of a frame, pixels
GAP = 3
LABELS, HEADING = 74, 22  # width of the column and height of the line of labels
PAPER, INK, FAINT = (226, 229, 234), (30, 33, 40), (95, 101, 113)


def draw_sheet(path: Path, history: Tensor, future: Tensor, imagined: Tensor, is_pad: Tensor) -> None:
    """Write a PNG with two rows for every sample: what happened, and below it what the policy imagined.

    Args:
        history: uint8 (B, H, 3, S, S). future, imagined: uint8 (B, F, 3, S, S).
        is_pad: (B, F) bool, frames beyond the episode's end; they are drawn pale.
    """
    from PIL import Image, ImageDraw

    seen, steps = history.shape[1], history.shape[1] + future.shape[1]
    scale = max(1, -(-TILE // history.shape[-1]))
    side = history.shape[-1] * scale
    block = 2 * side + 4 * GAP  # height of a sample's two rows
    sheet = Image.new("RGB", (LABELS + steps * (side + GAP) + GAP, HEADING + len(history) * block), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((LABELS, 5), "history", FAINT)
    pen.text((LABELS + seen * (side + GAP), 5), "future", FAINT)

    def draw_row(label: str, frames: Tensor, pale: Tensor, first: int, top: int) -> None:
        """Frames uint8 (T, 3, S, S) from column `first` on."""
        pen.text((8, top + side // 2 - 5), label, INK)
        images = interpolate(frames.float(), scale_factor=float(scale), mode="nearest")  # (T, 3, s, s)
        images = torch.where(pale[:, None, None, None], 170 + images / 3, images).to(torch.uint8)
        for step, image in enumerate(images.permute(0, 2, 3, 1).numpy(), start=first):
            sheet.paste(Image.fromarray(image), (LABELS + step * (side + GAP), top))

    for sample, pale in enumerate(is_pad):
        top = HEADING + sample * block
        draw_row("recorded", history[sample], torch.zeros(seen, dtype=torch.bool), 0, top)
        draw_row("recorded", future[sample], pale, seen, top)
        draw_row("imagined", imagined[sample], pale, seen, top + side + GAP)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
