"""What a policy does on held-out windows: losses of its task modes, errors of actions and frames, a sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unified_video_action.dataset.sampling import sample_seed
from unified_video_action.model.task_modes import TaskMode
from unified_video_action.policy.unified_video_action_policy import UnifiedVideoActionPolicy
from unified_video_action.vae.base import resize
from unified_video_action.workspace.packing import map_leaves
from unified_video_action.workspace.records import Records
from unified_video_action.workspace.sheet import draw_sheet

ROWS = 32  # windows at a time
SEED = 20250421  # masks and noise of validation, the same every time


class Validation:
    """Measures a policy on fixed windows, spread evenly over the held-out episodes.

    Args:
        policy: in evaluation mode when asked to measure.
        dataset: held-out samples with frames (not latents), of which `windows` are kept in memory.
        modes: those that the policy is trained in; only what they learn is measured.
        windows: how many.
    """

    def __init__(
        self, policy: UnifiedVideoActionPolicy, dataset: Dataset, modes: Iterable[TaskMode], windows: int
    ) -> None:
        self.policy, self.dataset, self.modes = policy, dataset, tuple(modes)
        count = min(windows, len(dataset))
        self.indices = [i * len(dataset) // count for i in range(count)]
        acting = [mode for mode in self.modes if mode.sees_history and not mode.sees_actions]
        self.learns_actions = any(mode.learns_actions for mode in acting)
        imagining = [mode for mode in acting if mode.learns_frames]
        self.imagine = None
        if imagining:
            together = all(mode.learns_actions for mode in imagining)
            self.imagine = policy.predict_action_and_video if together else policy.predict_video

    @torch.no_grad()
    def measure(self, step: int, records: Records) -> dict[str, float]:
        """Metrics on all windows.

        Returns:
            `<mode>/<term>`: losses. `action_error`: distance of the actions that would be executed from the recorded
            ones, in the data's units, and `action_error_chunk` for whole chunks. `frame_psnr`: of imagined future
            frames in dB, at the codec's size, and `frame_psnr_still` for repeating the newest frame instead.
        """
        sums: dict[str, list[float]] = {}

        def add(name: str, values: Tensor, valid: Tensor) -> None:
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += float(values[valid].sum())
            total[1] += float(valid.sum())

        for batch, frames in self._batches:
            batch = map_leaves(batch, Tensor, lambda tensor: tensor.to(self.policy.device))
            seeds = batch["seed"].tolist()
            for mode in self.modes:
                draws = self.policy.training_draws(seeds, [mode] * len(seeds)).to(self.policy.device)
                weights = self.policy.loss_weights(batch, draws)
                losses = self.policy(batch, draws, weights)
                for name, weight in weights.items():
                    total = sums.setdefault(f"{mode.name}/{name}", [0.0, 0.0])
                    total[0] += float(losses[name]) * weight
                    total[1] += weight
            obs = observation(batch)
            if self.learns_actions:
                valid = ~batch["action_is_pad"] & batch["has_action"].unsqueeze(1)  # (B, A)
                predicted = self.policy.predict_action(obs, generators(seeds))["action_pred"]
                distance = (predicted - batch["action"]).norm(dim=-1)  # (B, A)
                executed = slice(self.policy.action_steps)
                add("action_error", distance[:, executed], valid[:, executed])
                add("action_error_chunk", distance, valid)
            if self.imagine:
                valid = ~batch["frame_is_pad"]  # (B, F)
                imagined = self.imagine(obs, generators(seeds))["frames"]  # (B, F, 3, S, S)
                true = self._at_codec_size(frames["future"])
                still = self._at_codec_size(frames["history"][:, -1:]).expand_as(true)
                add("frame_psnr", psnr(imagined, true), valid)
                add("frame_psnr_still", psnr(still, true), valid)
        return {name: total / weight for name, (total, weight) in sums.items() if weight}

    @torch.no_grad()
    def draw(self, step: int, records: Records, folder: Path, rows: int) -> dict[str, float]:
        """Draw a sheet of imagined frames under the true ones into `folder`."""
        if self.imagine is None:
            return {}
        shown = [len(self.indices) * (2 * row + 1) // (2 * rows) for row in range(rows)]
        batch, frames = self._load([self.indices[place] for place in dict.fromkeys(shown)])
        seeds = batch["seed"].tolist()
        imagined = self.imagine(observation(batch), generators(seeds))["frames"]
        history, future = (self._at_codec_size(frames[name]) for name in ("history", "future"))
        path = folder / f"step_{step:08d}.png"
        draw_sheet(path, history.cpu(), future.cpu(), imagined.cpu(), batch["frame_is_pad"].cpu())
        records.picture(step, "imagined", path)
        return {}

    @cached_property
    def _batches(self) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
        return [self._load(self.indices[first : first + ROWS]) for first in range(0, len(self.indices), ROWS)]

    def _load(self, indices: Sequence[int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A batch whose frames are encoded, and the frames of the main camera: uint8 (B, T, 3, h, w), on the CPU."""
        batch = self.dataset.__getitems__([(index, int(sample_seed(SEED, index))) for index in indices])
        frames = {name: batch[name][self.policy.observations.main] for name in ("history", "future")}
        for name in frames:
            batch[name] = {camera: self.policy.encode(video).cpu() for camera, video in batch[name].items()}
        return batch, frames

    def _at_codec_size(self, frames: Tensor) -> Tensor:
        """uint8 (B, T, 3, h, w) -> uint8 (B, T, 3, S, S) on the policy's device."""
        size = self.policy.codec.image_size
        images = resize(frames.to(self.policy.device).flatten(0, 1).float(), size)  # (B*T, 3, S, S)
        return images.round().to(torch.uint8).unflatten(0, frames.shape[:2])


def observation(batch: dict[str, Any]) -> dict[str, Any]:
    """What a policy may see of a batch of training windows."""
    inputs = {name: batch[name] for name in ("text", "history_action") if name in batch}
    return {"latents": batch["history"], **batch["low_dim"], **inputs}


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def psnr(frames: Tensor, true: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of uint8 frames (B, T, 3, S, S) -> (B, T); finite for equal frames too."""
    error = (frames.float() - true.float()).square().mean((-3, -2, -1))  # (B, T)
    return 10 * torch.log10(255**2 / error.clamp(min=1 / (3 * frames.shape[-1] ** 2)))
