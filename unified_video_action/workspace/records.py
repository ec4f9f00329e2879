"""Where a run's metrics go: metrics.jsonl always, TensorBoard and wandb on demand."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_video_action.workspace.settings import TrainerSettings

logger = logging.getLogger(__name__)


class Records:
    """Writes a run's metrics and pictures under `folder`.

    Records of steps after `step`, left by a run that was killed and now continues from there, are dropped.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrainerSettings,
        step: int = 0,
        name: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _drop_after(path, step)
        self._lines = path.open("a", buffering=1)  # a line is on disk as soon as it is written
        self._tensorboard = self._wandb = None
        if settings.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        if settings.wandb:
            self._wandb = _start_wandb(folder, settings, name, config)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one record: `step` optimiser steps have been done, metrics by name such as `train/loss`."""
        self._lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **metrics}) + "\n")
        if self._tensorboard:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(metrics), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Show a PNG file that the run has written."""
        import numpy as np
        from PIL import Image

        if self._tensorboard:
            self._tensorboard.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")
        if self._wandb:
            import wandb

            self._wandb.log({name: wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self._lines.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            logger.warning("Dropping a line of %s that was cut short: %s", path, line.strip())
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def _start_wandb(folder: Path, settings: TrainerSettings, name: str, config: Mapping[str, Any] | None) -> Any:
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    if mode == "offline":
        logger.info("wandb has no API key: recording offline under %s; `wandb sync` uploads it later", folder / "wandb")
    return wandb.init(
        project=settings.wandb_project,
        name=name,
        dir=str(folder),
        mode=mode,
        config=dict(config or {}),
        resume="allow",
        id=_run_id(folder),
    )


def _run_id(folder: Path) -> str:
    """The same for every part of a run that is resumed."""
    import hashlib

    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
