"""Everything that is random in a training step, sampled on the CPU by a generator with a seed for every sample.

So a step is a pure function of its samples' seeds: the number of processes, loader workers and micro-batches does not
change what is masked, which noise is added, or which instruction is dropped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unified_video_action.model.config import MaskConfig, ModelConfig
from unified_video_action.model.task_modes import TaskMode
from unified_video_action.spec import ModelSpec

HISTORY_ACTION_DROPOUT = 0.1  # share of samples without past actions: when an episode begins there are none


@dataclass
class TrainingCorruption:
    """Masks, noise levels and noise of a batch. Heads run on the samples that a mode trains them on, and only there."""

    sees_history: Tensor  # (B,) bool: the first view's
    sees_actions: Tensor  # (B,) bool
    sees_text: Tensor  # (B,) bool
    masked: Tensor  # (B, T*S) bool: video tokens replaced by the mask token
    video_samples: Tensor  # (V,) samples that learn frames
    video_rows: Tensor  # (V, R) their tokens that the video head is trained on
    video_t: Tensor  # (V, P, K, R), for each predicted view
    video_noise: Tensor  # (V, P, K, R, C)
    action_samples: Tensor  # (A,) samples that learn actions
    action_t: Tensor  # (A, K, rows)
    action_noise: Tensor  # (A, K, rows, channels)
    proprio_t: Tensor  # (B, K, rows), or of no samples
    proprio_noise: Tensor  # (B, K, rows, channels), or of no samples
    levels: Tensor | None = None  # (B, 2) how much noise hidden frames and actions are seen through; 1: not seen
    frames_noise: Tensor | None = None  # (B, P, T*S, C)
    actions_noise: Tensor | None = None  # (B, A, D)
    sees_history_actions: Tensor | None = None  # (B,) bool, where the model reads past actions


def mask_ratios(config: MaskConfig, uniform: Tensor) -> Tensor:
    """Shares of cells to hide (B,), made of uniform numbers (B,) float64. (The paper's code has one for a batch.)"""
    bounds = (torch.tensor([config.low, config.high], dtype=torch.float64) - config.mean) / config.std
    low, high = torch.special.ndtr(bounds).tolist()  # shares of the normal distribution below
    drawn = config.mean + config.std * torch.special.ndtri(low + uniform * (high - low))
    return drawn.clamp(config.low, config.high)


def generation_schedule(cells: int, iterations: int) -> list[int]:
    """Cells of a frame that are still masked after each iteration of generation: MaskGIT's cosine, 0 at the end."""
    left, masked = [], cells
    for k in range(iterations - 1):
        masked = max(1, min(masked - 1, math.floor(cells * math.cos(math.pi / 2 * (k + 1) / iterations))))
        left.append(masked)
    return [*left, 0]


def draw_corruption(
    spec: ModelSpec, config: ModelConfig, seeds: Sequence[int], modes: Sequence[TaskMode]
) -> TrainingCorruption:
    """Draw a batch's randomness, from one seed and one task mode per sample."""
    batch, cells, tokens, steps = len(seeds), spec.tokens_per_frame, spec.tokens, spec.horizon.actions
    video = [i for i, mode in enumerate(modes) if mode.learns_frames]
    action = [i for i, mode in enumerate(modes) if mode.learns_actions]
    wanted = config.video_head.rows
    chosen = tokens if wanted is None else min(wanted, tokens)  # R
    rows, width = (1, steps) if config.action_head.chunk == "vector" else (steps, 1)  # of a chunk; steps of a row
    states = range(batch) if spec.proprio_output_dim else []
    noisy = {  # what is denoised: samples, head, rows, channels
        **{f"video{view}": (video, config.video_head, chosen, spec.token_dim) for view in range(spec.predicted_views)},
        "action": (action, config.action_head, rows, width * spec.action_dim),
        "proprio": (states, config.action_head, rows, width * spec.proprio_output_dim),
    }
    counts = {"text": 1, "ratio": 1, "cells": cells, "tokens": tokens if chosen < tokens else 0}  # uniform numbers
    # A second view's numbers are drawn even where there is none: seeds mean what they meant in earlier versions.
    counts |= {f"video{view}": config.video_head.noise_draws * chosen for view in range(max(2, spec.predicted_views))}
    counts |= {name: head.noise_draws * rows for name, (_, head, rows, _) in noisy.items()}
    if config.masking.inverse_history:
        counts["history"] = 1
    if spec.history_actions:
        counts["history_actions"] = 1
    seen_through = {}
    if config.masking.noise:
        counts["levels"] = 2
        seen_through["frames_noise"] = torch.empty(batch, spec.predicted_views, tokens, spec.token_dim)
        seen_through["actions_noise"] = torch.empty(batch, steps, spec.action_dim)
    uniform = torch.empty(batch, sum(counts.values()), dtype=torch.float64)
    noise = {
        name: torch.empty(len(samples), head.noise_draws, rows, channels)
        for name, (samples, head, rows, channels) in noisy.items()
    }
    # The generator fills a sample's rows in this order; whatever is made of them is computed for all samples at once.
    targets = [[] for _ in range(batch)]
    for name, (samples, *_) in noisy.items():
        for sample, own in zip(samples, noise[name].unbind()):
            targets[sample].append(own)
    for values in seen_through.values():
        for sample, own in enumerate(values):
            targets[sample].append(own)
    generator = torch.Generator()
    for seed, own, rest in zip(seeds, uniform.unbind(), targets, strict=True):
        generator.manual_seed(seed % 2**63)
        own.uniform_(generator=generator)
        for values in rest:
            values.normal_(generator=generator)

    u = dict(zip(counts, uniform.split(list(counts.values()), dim=1), strict=True))
    masked = _masked(config.masking, u["ratio"][:, 0], u["cells"], modes).repeat(1, spec.horizon.future)  # (B, T*S)
    times = {
        name: (u[name][samples] * head.diffusion_steps).long().reshape(len(samples), head.noise_draws, rows)
        for name, (samples, head, rows, _) in noisy.items()
    }
    if config.video_head.attention_heads:  # one noise level for a clip, whose tokens are denoised together
        times |= {name: t[..., :1].expand_as(t) for name, t in times.items() if name.startswith("video")}
    sees_history = torch.tensor([mode.sees_history for mode in modes])
    if config.masking.inverse_history:
        sees_history |= u["history"][:, 0] < config.masking.inverse_history
    return TrainingCorruption(
        sees_history=sees_history,
        sees_actions=torch.tensor([mode.sees_actions for mode in modes]),
        sees_text=u["text"][:, 0] >= config.text_dropout,
        masked=masked,
        video_samples=torch.tensor(video, dtype=torch.long),
        video_rows=_video_rows(masked[video], u["tokens"][video], chosen),
        video_t=torch.stack([times[f"video{view}"] for view in range(spec.predicted_views)], dim=1),
        video_noise=torch.stack([noise[f"video{view}"] for view in range(spec.predicted_views)], dim=1),
        action_samples=torch.tensor(action, dtype=torch.long),
        action_t=times["action"],
        action_noise=noise["action"],
        proprio_t=times["proprio"],
        proprio_noise=noise["proprio"],
        sees_history_actions=u["history_actions"][:, 0] >= HISTORY_ACTION_DROPOUT if spec.history_actions else None,
        levels=(2 * u["levels"]).clamp(max=1).float() if config.masking.noise else None,
        **seen_through,
    )


def _masked(config: MaskConfig, ratio: Tensor, cells: Tensor, modes: Sequence[TaskMode]) -> Tensor:
    """(B, S) bool: cells hidden in every frame; `ratio` (B,) and `cells` (B, S) are uniform numbers."""
    counts = torch.ceil(cells.shape[1] * mask_ratios(config, ratio))  # (B,)
    partly = cells.argsort(dim=1).argsort(dim=1) < counts.unsqueeze(1)  # the first ones of a random order
    partial = torch.tensor([mode.future == "partial" for mode in modes]).unsqueeze(1)  # (B, 1)
    return torch.where(partial, partly, torch.tensor([mode.future == "masked" for mode in modes]).unsqueeze(1))


def _video_rows(masked: Tensor, uniform: Tensor, wanted: int) -> Tensor:
    """Tokens (V, wanted) to train the video head on: all (visible ones weigh nothing), or random ones, masked first."""
    if wanted == masked.shape[1]:
        return torch.arange(wanted).repeat(len(masked), 1)
    return (uniform + ~masked).argsort(dim=1)[:, :wanted]
