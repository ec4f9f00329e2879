"""LeRobot's batches as windows of this project, and what is measured on a dataset before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch import Tensor
from torch.utils.data import default_collate

from lerobot_policy_uva.configuration_uva import UvaConfig
from unified_video_action.dataset.frame_readers import LatentStatistics
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.vae.base import FrameCodec

SAMPLED = 128  # windows that are looked at before training


def as_frames(values: Tensor) -> Tensor:
    """LeRobot's pictures (..., 3, H, W), float in [0, 1] or uint8 -> uint8."""
    return values if values.dtype == torch.uint8 else (values * 255).round().clamp(0, 255).to(torch.uint8)


def windows(batch: Mapping[str, Any], config: UvaConfig) -> dict[str, Any]:
    """A batch of `observation_delta_indices` and `action_delta_indices` -> one of `WindowDataset` without seeds."""
    history, chunk = config.horizon.history, config.horizon.actions
    cameras = {config.names[feature]: as_frames(batch[feature]) for feature in config.image_features}
    states = {config.names[feature]: batch[feature].float() for feature in config.state_features}
    padded = batch[f"{next(iter(config.image_features))}_is_pad"]  # (B, H + F)
    actions = batch["action"].float()
    have = torch.ones(len(actions), dtype=torch.bool, device=actions.device)
    return {
        "history": {name: frames[:, :history] for name, frames in cameras.items()},
        "future": {name: frames[:, history:] for name, frames in cameras.items()},
        "low_dim": {name: values[:, :history] for name, values in states.items()},
        "action": actions[:, -chunk:],
        "action_is_pad": batch["action_is_pad"][:, -chunk:],
        "frame_is_pad": padded[:, history:],
        "has_action": have,
        "has_low_dim": have,
        **({"history_action": actions[:, :chunk]} if config.history_actions else {}),
    }


class SampledWindows:
    """What `UnifiedVideoActionPolicy.fit_normalizer` asks of a dataset, of some windows of one in LeRobot's format."""

    def __init__(self, config: UvaConfig, meta: Any, codec: FrameCodec) -> None:
        times = resolve_delta_timestamps(config, meta)
        dataset = LeRobotDataset(meta.repo_id, meta.root, delta_timestamps=times, video_backend="pyav")  # always there
        self.config, self.stats, self.windows = config, meta.stats, []
        codec.to(config.device)
        for index in range(0, len(dataset), max(1, len(dataset) // SAMPLED)):
            window = windows(default_collate([dataset[index]]), config)
            for part in ("history", "future"):  # frames of them all would fill the memory
                window[part] = {name: codec.encode(x.to(config.device)).cpu() for name, x in window[part].items()}
            self.windows.append(window)

    def fit_normalizer(self, relative_to: str | None) -> Normalizer:
        """Limits of states and actions by the dataset's statistics; relative actions by their deviation."""

        def limits(features: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
            known = {name: self.stats[feature] for feature, name in features.items()}
            fitted = Normalizer.limits({name: np.stack([each["min"], each["max"]]) for name, each in known.items()})
            whole = {name: {end: torch.as_tensor(each[end]) for end in ("mean", "std")} for name, each in known.items()}
            return {name: field | whole[name] for name, field in fitted.fields().items()}

        fields = limits({feature: self.config.names[feature] for feature in self.config.state_features})
        if relative_to is None:
            return Normalizer(limits({"action": "action"}) | fields)
        chunks = [
            (window["action"] - window["low_dim"][relative_to][:, -1:])[~window["action_is_pad"]]  # (n, D)
            for window in self.windows
        ]
        return Normalizer(Normalizer.deviations({"action": torch.cat(chunks)}).fields() | fields)

    def measure_latents(self) -> dict[str, LatentStatistics]:
        """Of each camera."""
        parts = {part: [window[part] for window in self.windows] for part in ("history", "future")}
        return {
            camera: LatentStatistics.of(*(torch.cat([each[camera] for each in part]) for part in parts.values()))
            for camera in self.windows[0]["history"]
        }
