"""The prediction grid: what is drawn where."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unified_video_action.workspace.prediction_grid import GAP, HEADING, LABELS, compose


def test_rows_and_chunks(tmp_path: Path) -> None:
    history = torch.full((2, 4, 3, 96, 96), 10, dtype=torch.uint8)
    history[:, -1] = 200
    future, imagined = (torch.full((2, 4, 3, 96, 96), shade, dtype=torch.uint8) for shade in (60, 120))
    is_pad = torch.zeros(2, 4, dtype=torch.bool)
    is_pad[1, 3] = True
    points = np.stack([np.linspace([10, 40], [90, 40], 16)] * 2)
    rows = {"imagined": imagined, "with actions": imagined + 60}
    compose(tmp_path / "new" / "grid.png", history, future, rows, is_pad, {"recorded": (points, (255, 0, 0))})
    grid = np.asarray(Image.open(tmp_path / "new" / "grid.png")).astype(int)

    def shade(sample: int, row: int, column: int) -> int:
        top = HEADING + sample * (3 * (96 + GAP) + 2 * GAP) + row * (96 + GAP)
        return int(grid[top + 80, LABELS + column * (96 + GAP) + 80, 1])

    assert [shade(0, 0, column) for column in range(8)] == [10, 10, 10, 200, 60, 60, 60, 60]
    assert shade(0, 1, 5) == 120 and shade(1, 2, 5) == 180 and shade(1, 0, 7) == 170 + 60 // 3
    beside = grid[:, : LABELS + 4 * (96 + GAP)]
    red = (beside[..., 0] > 240) & (beside[..., 1] < 20) & (beside[..., 2] < 20)
    assert red.sum() > 2 * 150 and (beside[HEADING + 99 : HEADING + 297, LABELS + 40] == 200).any()
