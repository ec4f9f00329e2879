"""The files of a checkpoint folder, checked against their list; what earlier versions of this project called things.

The list is the entry `files` of `trainer_state.json`, or of `metrics.json` where a checkpoint is shipped: file name ->
{"bytes": size, "crc32": checksum in hexadecimal digits}, or its size alone, as older checkpoints have it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

METRICS = "metrics.json"  # what scripts/export_checkpoint.py writes into a checkpoint
LISTS = ("trainer_state.json", METRICS)
SMALL = 1 << 24  # bytes, most of a JSON file; features of 130 instructions take a tenth
UVA = "unified_video_action.policy.uva.UnifiedVideoActionPolicy"
TENSORS = {  # beginning of an old tensor's name -> the new one; there were two cameras at most
    "mar.inputs.masked_frame": "mar.inputs.masked_frames.0",
    "mar.inputs.masked_wrist": "mar.inputs.masked_frames.1",
    "mar.inputs.future_proj": "mar.inputs.future_projs.0",
    "mar.inputs.wrist_future_proj": "mar.inputs.future_projs.1",
    "mar.inputs.history_proj": "mar.inputs.history_projs.0",
    "mar.inputs.wrist_history_proj": "mar.inputs.history_projs.1",
    "video_head": "video_heads.0",
    "wrist_head": "video_heads.1",
}
TRAINER = {
    "evaluate_films": "evaluate_videos",
    "sheet_every": "prediction_grid_every",
    "sheet_windows": "prediction_grid_windows",
}  # old key of `trainer` -> the new one
_OLD = re.compile(rf"({'|'.join(map(re.escape, TENSORS))})(?=\.|$)")
T = TypeVar("T")


def read_json(path: Path) -> Any:
    """What a small JSON file holds.

    Raises:
        FileNotFoundError: no such file. ValueError: damaged, larger than SMALL, or nested too deeply.
    """
    if (size := path.stat().st_size) > SMALL:
        raise ValueError(f"{path} has {size} bytes: the most is {SMALL}")
    try:
        return json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged and cannot be read: {error}") from error


def listed(folder: Path) -> dict[str, dict[str, int | str]]:
    """Size and checksum of every file in a folder, for its list."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: {"bytes": path.stat().st_size, "crc32": _crc32(path)} for path in files}


def fault(folder: Path, files: Mapping[str, Any], most: int | None = None) -> str | None:
    """The first file that is not as listed, and how; None if all are.

    Args:
        most: of files with more bytes only the size is looked at.
    """
    for name, written in files.items():
        path = folder / name
        written = written if isinstance(written, Mapping) else {"bytes": written}
        size, checksum = written.get("bytes"), written.get("crc32")
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        if checksum is not None and (most is None or size <= most) and (found := _crc32(path)) != checksum:
            return f"{name} is damaged: its checksum is {found}, {checksum} was written"
    return None


def verify(folder: Path, weights: str) -> None:
    """Check what a policy is read from, but for its configuration, which may be edited.

    Args:
        weights: "ema" or "model", the weights that will be read.

    Raises:
        ValueError: a file that is not the one that was written, or JSON that is damaged or too large.
    """
    read = re.compile(rf"(normalizer|instructions)\.json|(codec|{weights})[.-].*")
    small = {name: folder / name for name in ("normalizer.json", "instructions.json", *LISTS)}
    found = {name: read_json(path) for name, path in small.items() if path.is_file()}
    for name in LISTS:
        content = found.get(name)
        files = content.get("files") if isinstance(content, dict) else None
        listed_here = files.items() if isinstance(files, dict) else ()
        if wrong := fault(folder, {name: written for name, written in listed_here if read.fullmatch(name)}):
            raise ValueError(f"checkpoint {folder}: {wrong}. Copy or download it again, or take another checkpoint")


def _crc32(path: Path) -> str:
    total = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            total = zlib.crc32(piece, total)
    return f"{total:08x}"


# -- checkpoints of earlier versions -----------------------------------------------------------------------------------


def upgrade_tensors(tensors: Mapping[str, T]) -> dict[str, T]:
    """The same tensors (or moments of an optimiser) under today's names."""
    return {_OLD.sub(lambda match: TENSORS[match[1]], name, count=1): value for name, value in tensors.items()}


def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration with today's keys; a current one comes back as it is."""
    policy, training, trainer = (config.get(name) for name in ("policy", "training", "trainer"))
    if isinstance(policy, dict):
        policy.setdefault("_target_", UVA)
        if isinstance(policy.get("loss_scale"), dict):
            policy["loss_scale"].pop("wrist", None)  # one term holds the losses of all cameras
    if isinstance(training, dict) and isinstance(config.get("model"), dict) and "mode_mix" in training:
        config["model"]["mode_mix"] = training.pop("mode_mix")
    if isinstance(task := config.get("task"), dict) and "hand" in task:
        task["end_effector"] = task.pop("hand")
    if isinstance(trainer, dict):
        config["trainer"] = {TRAINER.get(key, key): value for key, value in trainer.items()}
    return config
