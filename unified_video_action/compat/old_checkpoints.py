"""Checkpoints of earlier versions of this project: their configurations and tensor names, as today's have them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

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
