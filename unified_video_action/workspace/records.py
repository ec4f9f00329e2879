"""Where a run's metrics go: metrics.jsonl always, TensorBoard and wandb on demand, by accelerate's trackers."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import TensorBoardTracker, WandBTracker
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary

from unified_video_action.files import written
from unified_video_action.workspace.settings import TrainerSettings

logger = logging.getLogger(__name__)
DONE = "/done"
GIF_EVERY, GIF_SHRINK = 4, 2  # one frame in so many, and its sides over so much


@dataclass(frozen=True)
class Periodic:
    """Something done between steps, with the averaged weights and in evaluation mode."""

    name: str  # prefix of its metrics
    every: int  # steps
    # (optimiser steps done, records) -> metrics; what the main process returns counts, and it alone has records
    run: Callable[[int, Records | None], Mapping[str, float]]
    together: bool = False  # all processes run it and share its work; else the main one alone does


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
        self._done = _drop_after(path, step) if path.exists() else set()  # steps, names
        self._lines = path.open("a", buffering=1)  # a line is on disk as soon as it is written
        self._trackers: list[TensorBoardTracker | WandBTracker] = []
        if settings.tensorboard:
            self._trackers.append(TensorBoardTracker("tensorboard", folder, purge_step=step + 1 if step else None))
        if settings.wandb:
            self._trackers.append(_wandb_tracker(folder, settings, name, dict(config or {})))
        for tracker in self._trackers:
            tracker.start()

    def write(self, step: int, metrics: Mapping[str, float], done: Sequence[str] = ()) -> None:
        """Add one record: `step` optimiser steps have been done, metrics by name such as `train/loss`.

        `done` names what was done after this step, so that it is not done again by a process that goes on from there;
        metrics.jsonl alone says so, as NAME/done.
        """
        line = {"step": step, "time": round(time.time(), 3), **metrics, **{f"{name}{DONE}": 1 for name in done}}
        self._lines.write(json.dumps(line) + "\n")
        self._done |= {(step, name) for name in done}
        for tracker in self._trackers:
            tracker.log(dict(metrics), step=step)

    def done(self, step: int) -> set[str]:
        """Names of what was done after that step."""
        return {name for at, name in self._done if at == step}

    def picture(self, step: int, name: str, path: Path) -> None:
        """Show a PNG file that the run has written."""
        for tracker in self._trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: np.asarray(Image.open(path).convert("RGB"))[None]}, step=step, **layout)

    def video(self, step: int, name: str, path: Path) -> None:
        """Show an mp4 file that the run has written; TensorBoard shows a smaller one of fewer frames."""
        for tracker in self._trackers:
            if tracker.name == "tensorboard":
                tracker.writer.file_writer.add_summary(_animation(name, path), step)
            else:
                import wandb

                tracker.log({name: wandb.Video(str(path), format="mp4")}, step=step)

    def close(self) -> None:
        self._lines.close()
        for tracker in self._trackers:
            tracker.finish()


def _animation(name: str, path: Path) -> Summary:
    """A GIF among the images, for TensorBoard has no videos."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown_ms = 1000 * GIF_EVERY / float(stream.average_rate)
        pictures = [frame.to_image() for frame in islice(container.decode(stream), 0, None, GIF_EVERY)]
    first, *more = [picture.reduce(GIF_SHRINK) for picture in pictures]
    file = io.BytesIO()
    first.save(file, "gif", save_all=True, append_images=more, duration=shown_ms, loop=0)
    image = Summary.Image(height=first.height, width=first.width, colorspace=3, encoded_image_string=file.getvalue())
    return Summary(value=[Summary.Value(tag=name, image=image)])


def _drop_after(path: Path, step: int) -> set[tuple[int, str]]:
    """Keep the records up to this step, and tell after which steps what was done."""
    kept, done = [], set()
    for line in path.read_text().splitlines(keepends=True):
        try:
            entry = json.loads(line)
            if entry["step"] <= step:
                kept.append(line)
                done |= {(entry["step"], name.removesuffix(DONE)) for name in entry if name.endswith(DONE)}
        except ValueError:
            logger.warning("Dropping a line of %s that was cut short: %s", path, line.strip())
    with written(path) as partial:
        partial.write_text("".join(kept))
    return done


def _wandb_tracker(folder: Path, settings: TrainerSettings, name: str, config: dict[str, Any]) -> WandBTracker:
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    if mode == "offline":
        logger.info("wandb has no API key: recording offline under %s; `wandb sync` uploads it later", folder / "wandb")
    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]  # of every part of a resumed run
    return WandBTracker(
        settings.wandb_project, name=name, dir=str(folder), mode=mode, config=config, resume="allow", id=identity
    )
