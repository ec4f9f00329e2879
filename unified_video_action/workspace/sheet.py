"""One picture that compares imagined frames with true ones."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

TILE = 96  # smallest side of a frame, pixels
GAP = 3
LABELS = 74  # width of the column of labels
PAPER, INK, FAINT = (255, 255, 255), (30, 33, 40), (120, 126, 138)


def draw_sheet(path: Path, history: Tensor, future: Tensor, imagined: Tensor, is_pad: Tensor) -> None:
    """Write a PNG with two rows for every sample: what happened, and below it what the policy imagined.

    Args:
        history: uint8 (B, H, 3, S, S). future, imagined: uint8 (B, F, 3, S, S).
        is_pad: (B, F) bool, frames beyond the episode's end; they are drawn pale.
    """
    from PIL import Image, ImageDraw

    true = torch.cat([history, future], dim=1)  # (B, H+F, 3, S, S)
    unseen = torch.full_like(history, 255)  # history is not repeated below itself
    made = torch.cat([unseen, imagined], dim=1)  # (B, H+F, 3, S, S)
    pale = torch.cat([torch.zeros(len(history), history.shape[1], dtype=torch.bool), is_pad], dim=1)  # (B, H+F)
    scale = max(1, -(-TILE // true.shape[-1]))
    side = true.shape[-1] * scale
    steps = true.shape[1]
    sheet = Image.new("RGB", (LABELS + steps * (side + GAP) + GAP, len(true) * (2 * side + 3 * GAP) + 22), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((LABELS, 5), "history", FAINT)
    pen.text((LABELS + history.shape[1] * (side + GAP), 5), "future", FAINT)
    for sample in range(len(true)):
        for line, (label, frames) in enumerate({"recorded": true, "imagined": made}.items()):
            top = 22 + sample * (2 * side + 3 * GAP) + line * (side + GAP)
            pen.text((6, top + side // 2 - 5), label, INK)
            images = interpolate(frames[sample].float(), scale_factor=float(scale), mode="nearest")  # (H+F, 3, s, s)
            images = torch.where(pale[sample, :, None, None, None], 170 + images / 3, images).to(torch.uint8)
            for step, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
                sheet.paste(Image.fromarray(image), (LABELS + step * (side + GAP), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
