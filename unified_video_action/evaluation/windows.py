"""Held-out windows in memory, encoded once, on which a policy is measured again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unified_video_action.dataset.sampling import sample_seed
from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.policy.base import BasePolicy
from unified_video_action.vae.base import resize

SEED = 20250421  # masks and noise of the measures, the same every time


class HeldOutWindows:
    """Windows spread evenly over a dataset.

    Args:
        policy: encodes the frames, if it has a codec.
        dataset: with frames (not latents).
        count: most windows.
        rows: windows at a time.

    Attributes:
        batch: as the dataset's, with latents in place of frames where the policy has a codec, on the CPU.
        history, future: of such a policy frames of the first camera at the codec's size, uint8 (N, T, 3, S, S), on the
            CPU.
        episode: (N,) numbers of the windows' episodes.
        other: (N,) for each window one of another episode, or of a time far away where there is one episode only.
    """

    def __init__(
        self,
        policy: BasePolicy,
        dataset: WindowDataset,
        count: int,
        rows: int = 32,
        progress: bool = False,
    ) -> None:
        self.policy, self.rows = policy, rows
        count = min(count, len(dataset))
        self.indices = [(2 * i + 1) * len(dataset) // (2 * count) for i in range(count)]
        self.encoded = hasattr(policy, "codec")
        parts, histories, futures = [], [], []
        for first in tqdm(range(0, count, rows), "encode", disable=None if progress else True):
            seeded = [(index, int(sample_seed(SEED, index))) for index in self.indices[first : first + rows]]
            parts.append(dataset.__getitems__(seeded))
            if self.encoded:
                for name, frames in (("history", histories), ("future", futures)):
                    views = parts[-1][name]
                    frames.append(_at_codec_size(policy, views[policy.task.camera_names[0]]))
                    parts[-1][name] = {camera: policy.encode(video).cpu() for camera, video in views.items()}
        self.batch = _joined(parts)
        if self.encoded:
            self.history, self.future = torch.cat(histories), torch.cat(futures)
        self.episode = dataset.episodes()[self.indices]
        self.other = _others(self.episode)

    @property
    def now(self) -> Tensor:
        """The newest frames, uint8 (N, 3, S, S)."""
        return self.history[:, -1]

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, windows: Sequence[int]) -> dict[str, Any]:
        """The batch of some of the windows, on the policy's device."""
        chosen = torch.as_tensor(np.asarray(windows))
        return _mapped(self.batch, lambda values: values[chosen].to(self.policy.device))


def _at_codec_size(policy: BasePolicy, frames: Tensor) -> Tensor:
    """uint8 (B, T, 3, h, w) -> uint8 (B, T, 3, S, S) on the CPU."""
    images = resize(frames.to(policy.device).flatten(0, 1).float(), policy.codec.image_size)  # (B*T, 3, S, S)
    return images.round().to(torch.uint8).unflatten(0, frames.shape[:2]).cpu()


def observation(batch: dict[str, Any]) -> dict[str, Any]:
    """What a policy may see of a batch of windows."""
    inputs = {name: batch[name] for name in ("text", "history_action") if name in batch}
    return {**batch["history"], **batch["low_dim"], **inputs}


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def psnr(frames: Tensor, true: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of uint8 frames (B, T, 3, S, S) -> (B, T); finite for equal frames too."""
    error = (frames.float() - true.float()).square().mean((-3, -2, -1))  # (B, T)
    return 10 * torch.log10(255**2 / error.clamp(min=1 / (3 * frames.shape[-1] ** 2)))


def _others(episode: np.ndarray) -> np.ndarray:
    """For each window (N,) the first of another episode, from the one half the windows away on."""
    count = len(episode)
    places = np.arange(count)
    chosen = (places + count // 2) % count
    for step in range(count):
        candidate = (places + count // 2 + step) % count
        same = episode[chosen] == episode
        chosen[same] = candidate[same]
    same = episode[chosen] == episode
    chosen[same] = (places[same] + count // 2) % count
    return chosen


def _mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(values, Tensor):
        return change(values)
    return {name: _mapped(value, change) for name, value in values.items()}


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}
