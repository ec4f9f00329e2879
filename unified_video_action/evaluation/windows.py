"""Held-out windows in memory, encoded once, on which a policy is measured again and again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from tqdm import tqdm

from unified_video_action.dataset.build import build_dataset
from unified_video_action.dataset.sampling import sample_seed
from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.policy.base import BasePolicy
from unified_video_action.vae.base import resize

log = logging.getLogger(__name__)
LEAST_EPISODES, FEW_EPISODES = 2, 10  # held out: to measure at all, to trust the intervals
SEED = 20250421  # masks and noise of the measures, the same every time


def open_held_out(config: Mapping[str, Any], stores: Sequence[str] | None = None) -> WindowDataset:
    """The held-out episodes of a run's first store, or of other ones, with frames.

    Raises:
        ValueError: fewer than two episodes are held out. FileNotFoundError: no data.
    """
    held_out = build_dataset(with_stores(config, stores)).validation()
    held_out.use_frames()
    episodes, ratio = len(np.unique(held_out.episodes())), config["task"]["dataset"].get("val_ratio")
    if episodes < LEAST_EPISODES:
        raise ValueError(
            f"task.dataset.val_ratio={ratio} holds out {episodes} episode: at least {LEAST_EPISODES} are needed to "
            "show one window another episode's actions; train with a larger val_ratio"
        )
    if episodes < FEW_EPISODES:
        log.warning("only %d episodes are held out (task.dataset.val_ratio): intervals are rough", episodes)
    return held_out


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
        self, policy: BasePolicy, dataset: WindowDataset, count: int, rows: int = 32, progress: bool = False
    ) -> None:
        self.policy, self.rows, self.progress = policy, rows, progress
        count = min(count, len(dataset))
        self.indices = [(2 * i + 1) * len(dataset) // (2 * count) for i in range(count)]
        self.encoded = hasattr(policy, "codec")
        parts, frames = [], {"history": [], "future": []}
        for indices in self.index_batches("encode"):
            chosen = [self.indices[window] for window in indices]
            parts.append(dataset.__getitems__([(index, int(sample_seed(SEED, index))) for index in chosen]))
            for name in frames if self.encoded else ():
                views = parts[-1][name]
                frames[name].append(_at_codec_size(policy, views[policy.task.camera_names[0]]))
                parts[-1][name] = {camera: policy.encode(video).cpu() for camera, video in views.items()}
        self.batch = tree_map(lambda *values: torch.cat(values), *parts)
        if self.encoded:
            self.history, self.future = torch.cat(frames["history"]), torch.cat(frames["future"])
        self.episode = dataset.episodes()[self.indices]
        self.other = _others(self.episode)

    def index_batches(self, label: str) -> Iterator[np.ndarray]:
        """Indices of all windows, `rows` at a time, under a progress bar."""
        starts = range(0, len(self), self.rows)
        for first in tqdm(starts, label, disable=None if self.progress else True, leave=False):
            yield np.arange(first, min(first + self.rows, len(self)))

    @property
    def now(self) -> Tensor:
        """The newest frames, uint8 (N, 3, S, S)."""
        return self.history[:, -1]

    @property
    def executed(self) -> Tensor:
        """Actions (N, A, D) as they were carried out, which is what dynamics is measured by."""
        return self.batch.get("executed_action", self.batch["action"])

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, windows: Sequence[int]) -> dict[str, Any]:
        """The batch of some of the windows, on the policy's device."""
        chosen = torch.as_tensor(np.asarray(windows))
        return tree_map(lambda values: values[chosen].to(self.policy.device), self.batch)


def _at_codec_size(policy: BasePolicy, frames: Tensor) -> Tensor:
    """uint8 (B, T, 3, h, w) -> uint8 (B, T, 3, S, S) on the CPU."""
    images = resize(frames.to(policy.device).flatten(0, 1).float(), policy.codec.image_size)  # (B*T, 3, S, S)
    return images.round().to(torch.uint8).unflatten(0, frames.shape[:2]).cpu()


def with_stores(config: dict[str, Any], stores: Sequence[str | Path] | None = None) -> dict[str, Any]:
    """A configuration that reads the first of its stores alone, or other stores of the same kind.

    Raises:
        ValueError: other ones are given, and its data set names no stores.
    """
    dataset = config["task"]["dataset"]
    key = next((key for key in ("paths", "sources") if key in dataset), None)
    if key is None and stores:
        raise ValueError(f"--data: task.dataset of {dataset['_target_']} names no stores")
    if key is None:
        return config
    first = dataset[key]
    if isinstance(first, Mapping) and "_target_" not in first and key == "sources":
        first = list(first.values())
    first = first[0] if isinstance(first, list) else first
    if stores:
        like = first if isinstance(first, Mapping) else {}
        first = [{**like, "path": str(store), "weight": None} for store in stores]
    return {**config, "task": {**config["task"], "dataset": {**dataset, key: first}}}


def observation(batch: dict[str, Any]) -> dict[str, Any]:
    """What a policy may see of a batch of windows."""
    inputs = {name: batch[name] for name in ("text", "history_action", "has_low_dim") if name in batch}
    return {**batch["history"], **batch["low_dim"], **inputs}


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _others(episode: np.ndarray) -> np.ndarray:
    """For each window (N,) the first of another episode, from the one half the windows away on."""
    from_half = np.roll(np.arange(len(episode)), -(len(episode) // 2))
    found = []
    for index, own in enumerate(episode):
        ahead = np.roll(from_half, -index)
        found.append(ahead[np.argmax(episode[ahead] != own)])  # the one half away where all are alike
    return np.array(found)
