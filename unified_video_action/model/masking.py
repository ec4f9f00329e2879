"""Everything that is random in a training step, drawn on the CPU from one generator per sample.

So a step is a pure function of its samples' seeds: the number of processes, loader workers and micro-batches does not
change what is masked, which noise is added, or which instruction is dropped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from unified_video_action.model.config import MaskConfig, ModelConfig
from unified_video_action.model.task_modes import TaskMode
from unified_video_action.spec import ModelSpec


@dataclass
class TrainingDraws:
    """Masks, noise levels and noise of a batch. Heads run on the samples that a mode trains them on, and only there."""

    sees_history: Tensor  # (B,) bool
    sees_actions: Tensor  # (B,) bool
    sees_text: Tensor  # (B,) bool
    masked: Tensor  # (B, T*S) bool: video tokens replaced by the mask token
    video_samples: Tensor  # (V,) samples that learn frames
    video_rows: Tensor  # (V, R) their tokens that the video head is trained on
    video_t: Tensor  # (V, K, R)
    video_noise: Tensor  # (V, K, R, C)
    wrist_t: Tensor  # (V, K, R) or empty
    wrist_noise: Tensor  # (V, K, R, C) or empty
    action_samples: Tensor  # (A,) samples that learn actions
    action_t: Tensor  # (A, K, rows)
    action_noise: Tensor  # (A, K, rows, channels)
    proprio_t: Tensor  # (B, K, rows) or empty
    proprio_noise: Tensor  # (B, K, rows, channels) or empty

    def to(self, device: torch.device | str) -> "TrainingDraws":
        return TrainingDraws(
            **{field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)}
        )


def mask_ratio(config: MaskConfig, generator: torch.Generator) -> float:
    """Draw the share of cells to hide. Every sample has its own (the paper's code shares one in the batch)."""
    low, high = _quantiles(config)
    uniform = torch.rand((), generator=generator, dtype=torch.float64)
    drawn = config.mean + config.std * float(torch.special.ndtri(low + uniform * (high - low)))
    return min(max(drawn, config.low), config.high)


@lru_cache
def _quantiles(config: MaskConfig) -> tuple[float, float]:
    """Shares of the normal distribution below the bounds of the ratio."""
    bounds = (torch.tensor([config.low, config.high], dtype=torch.float64) - config.mean) / config.std
    return tuple(torch.special.ndtr(bounds).tolist())


def spatial_order(cells: int, generator: torch.Generator | None) -> Tensor:
    """(cells,) a random order of a frame's cells, on the generator's device."""
    return torch.randperm(cells, generator=generator, device=None if generator is None else generator.device)


def generation_schedule(cells: int, iterations: int) -> list[int]:
    """Cells of a frame that are still masked after each iteration of generation: MaskGIT's cosine, 0 at the end."""
    left, masked = [], cells
    for k in range(iterations - 1):
        masked = max(1, min(masked - 1, math.floor(cells * math.cos(math.pi / 2 * (k + 1) / iterations))))
        left.append(masked)
    return [*left, 0]


def draw_training(
    spec: ModelSpec, config: ModelConfig, seeds: Sequence[int], modes: Sequence[TaskMode]
) -> TrainingDraws:
    """Draw a batch's randomness.

    Args:
        seeds: one integer per sample. modes: one task mode per sample.
    """
    if len(seeds) != len(modes):
        raise ValueError(f"{len(seeds)} seeds for {len(modes)} modes: one of each per sample is needed")
    samples = [_draw_sample(spec, config, seed, mode) for seed, mode in zip(seeds, modes, strict=True)]

    def stack(name: str, chosen: Sequence[int] = range(len(samples))) -> Tensor:
        found = [samples[i][name] for i in chosen if name in samples[i]]
        return torch.stack(found) if found else torch.empty(0)

    video = [i for i, mode in enumerate(modes) if mode.learns_frames]
    action = [i for i, mode in enumerate(modes) if mode.learns_actions]
    return TrainingDraws(
        sees_history=torch.tensor([mode.sees_history for mode in modes]),
        sees_actions=torch.tensor([mode.sees_actions for mode in modes]),
        sees_text=stack("sees_text"),
        masked=stack("masked"),
        video_samples=torch.tensor(video, dtype=torch.long),
        video_rows=stack("video_rows", video),
        video_t=stack("video_t", video),
        video_noise=stack("video_noise", video),
        wrist_t=stack("wrist_t", video),
        wrist_noise=stack("wrist_noise", video),
        action_samples=torch.tensor(action, dtype=torch.long),
        action_t=stack("action_t", action),
        action_noise=stack("action_noise", action),
        proprio_t=stack("proprio_t"),
        proprio_noise=stack("proprio_noise"),
    )


def _draw_sample(spec: ModelSpec, config: ModelConfig, seed: int, mode: TaskMode) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(int(seed) % 2**63)
    cells, frames = spec.tokens_per_frame, spec.horizon.future
    drawn = {"sees_text": torch.rand((), generator=generator) >= config.text_dropout}

    # The same cells are hidden in every frame.
    hidden = np.zeros(cells, dtype=bool)
    order = spatial_order(cells, generator).numpy()
    hidden[order[: math.ceil(cells * mask_ratio(config.masking, generator))]] = True
    if mode.future != "partial":
        hidden[:] = mode.future == "masked"
    drawn["masked"] = torch.from_numpy(np.tile(hidden, frames))  # (T*S,)

    def noise(head, rows: int, channels: int, name: str) -> None:
        shape = (head.noise_draws, rows)
        drawn[f"{name}_t"] = torch.randint(head.diffusion_steps, shape, generator=generator)
        drawn[f"{name}_noise"] = torch.randn(*shape, channels, generator=generator)

    if mode.learns_frames:
        drawn["video_rows"] = _video_rows(drawn["masked"], config.video_head.rows, generator)
        rows = len(drawn["video_rows"])
        noise(config.video_head, rows, spec.token_dim, "video")
        if spec.wrist_output:
            noise(config.video_head, rows, spec.token_dim, "wrist")
    whole = config.action_head.chunk == "vector"
    steps = spec.horizon.actions

    def chunk_noise(dim: int, name: str) -> None:
        noise(config.action_head, 1 if whole else steps, dim * steps if whole else dim, name)

    if mode.learns_actions:
        chunk_noise(spec.action_dim, "action")
    if spec.proprio_output_dim:
        chunk_noise(spec.proprio_output_dim, "proprio")
    return drawn


def _video_rows(masked: Tensor, wanted: int | None, generator: torch.Generator) -> Tensor:
    """Tokens to train the video head on: all of them (visible ones weigh nothing), or `wanted` random masked ones."""
    if wanted is None or wanted >= len(masked):
        return torch.arange(len(masked))
    order = torch.randperm(len(masked), generator=generator).numpy()
    hidden = masked.numpy()[order]
    return torch.from_numpy(np.concatenate([order[hidden], order[~hidden]])[:wanted])
