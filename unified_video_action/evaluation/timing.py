"""How long a policy takes: latency by part (rows of the paper's Table VII and those of frame generation), and training.

Times do not depend on what the weights are or what the frames show, so observations and batches are noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.unified_video_action_policy import UnifiedVideoActionPolicy
from unified_video_action.workspace.batches import StepBatches
from unified_video_action.workspace.ema import Ema
from unified_video_action.workspace.optim import build_optimizer
from unified_video_action.workspace.packing import Packed
from unified_video_action.workspace.settings import TrainingSettings

Times = dict[str, float]  # part -> seconds
Rows = dict[str, dict[str, float]]  # part -> median, min and max, in milliseconds

PARTS = {  # name -> what owns the timed method, and the method
    "VAE encode": ("codec", "moments"),
    "transformer": ("model.mar", "forward"),
    "action diffusion": ("model.action_head", "sample_chunk"),
    "video diffusion": ("model.video_head", "sample"),
    "VAE decode": ("codec", "decode"),
}


@dataclass(frozen=True)
class Bench:
    """Where and how often to measure."""

    device: torch.device
    dtype: torch.dtype | None = None  # of autocast; None: off
    repeats: int = 20
    warmup: int = 3

    def summarise(self, measure: Callable[[], Times]) -> Rows:
        """Call `measure` again and again; rows for the parts it reports, the warm-up left out."""
        runs = [measure() for _ in range(self.warmup + self.repeats)][self.warmup :]
        columns = {part: [1000 * run[part] for run in runs] for part in runs[0]}
        return {
            part: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for part, values in columns.items()
        }

    def time(self, run: Callable[[], Any]) -> float:
        """Seconds of one call, with nothing else under way on the device."""
        self.synchronize()
        start = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def autocast(self) -> AbstractContextManager:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    @contextmanager
    def stopwatch(self, policy: UnifiedVideoActionPolicy) -> Iterator[Times]:
        """Within the context the parts of the policy add their seconds to the mapping."""
        times: Times = {}

        def timed(part: str, method: Callable) -> Callable:
            @wraps(method)
            def run(*args: Any, **kwargs: Any) -> Any:
                results: list = []
                seconds = self.time(lambda: results.append(method(*args, **kwargs)))
                times[part] = times.get(part, 0.0) + seconds
                return results[0]

            return run

        places = {part: (attrgetter(owner)(policy), method) for part, (owner, method) in PARTS.items()}
        for part, (owner, method) in places.items():
            setattr(owner, method, timed(part, getattr(owner, method)))
        try:
            yield times
        finally:
            for owner, method in places.values():
                delattr(owner, method)  # the class's own shows again


def time_latency(
    policy: UnifiedVideoActionPolicy, bench: Bench, image: tuple[int, int], batch: int = 1, sampler: str | None = None
) -> dict[str, Rows]:
    """Time planning in `batch` environments with frames of (height, width) `image`.

    Returns:
        rows of a plan whose history is all new, of one that remembers frames of the plan before it, and of a plan with
        imagined frames.
    """
    policy.eval()
    session = PolicySession(policy, slots=batch, sampler=sampler)
    text_dim, horizon = policy.model.spec.text_dim, policy.horizon
    text = torch.zeros(text_dim, device=bench.device) if text_dim else None
    frame = np.random.default_rng(0).integers(256, size=(*image, 3), dtype=np.uint8)
    observation = dict.fromkeys(policy.observations.cameras, frame)
    observation |= {name: _noise(policy, name).numpy() for name in policy.observations.low_dim}

    def observe(steps: int) -> None:
        for slot in range(batch):
            for _ in range(steps):
                session.observe(observation, slot)

    def measure(predict: Callable[[], Any], remember: bool = False) -> Times:
        for slot in range(batch):
            session.reset(slot, text=text)
        observe(1 - horizon.history_offsets[0])
        with bench.autocast():
            if remember:
                session.plan()
                observe(policy.action_steps)
            with bench.stopwatch(policy) as times:
                total = bench.time(predict)
        return {**times, "total": total}

    new = sum(-policy.action_steps < offset for offset in horizon.history_offsets)
    return {
        f"policy, {horizon.history} new frames": bench.summarise(lambda: measure(session.plan)),
        f"policy, {new} new frames": bench.summarise(lambda: measure(session.plan, remember=True)),
        "policy and video": bench.summarise(lambda: measure(session.imagine)),
    }


def time_training(policy: UnifiedVideoActionPolicy, bench: Bench, training: TrainingSettings) -> Rows:
    """Time optimiser steps on latents that are in memory. Changes the policy's weights.

    Returns:
        rows of a step's parts and its total; a step is `training.batch_size` samples.
    """
    policy.train()
    loader = StepBatches(NoiseDataset(policy), policy, training, seed=0).loader(0, bench.warmup + bench.repeats)
    optimizer, ema = build_optimizer(policy.model, training.optimizer), Ema(policy.model, training.ema)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()
        ema.update(1)

    def measure() -> Times:
        packed: list[Packed] = []
        losses: dict[str, Tensor] = {}
        times = {"masks and noise": bench.time(lambda: packed.append(next(loader)))}
        (inputs,) = packed[0].unpack(bench.device)
        with bench.autocast():
            times["forward"] = bench.time(lambda: losses.update(policy(inputs.batch, inputs.draws, inputs.weights)))
        times["backward"] = bench.time(lambda: losses["loss"].backward())
        times["optimizer and EMA"] = bench.time(update)
        return {**times, "total": sum(times.values())}

    return bench.summarise(measure)


def time_loader(
    policy: UnifiedVideoActionPolicy, bench: Bench, training: TrainingSettings, dataset: WindowDataset, workers: int
) -> Rows:
    """Time the making of batches from stored data, as fast as they are asked for: one row, a step's batch."""
    batches = StepBatches(dataset, policy, training, seed=0)
    loader = batches.loader(0, bench.warmup + bench.repeats, workers)
    return bench.summarise(lambda: {"total": bench.time(lambda: next(loader))})


class NoiseDataset:
    """Endless random training batches of a policy's shapes, with latents in place of frames."""

    def __init__(self, policy: UnifiedVideoActionPolicy) -> None:
        self.policy = policy

    def __len__(self) -> int:
        return 2**20

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        spec, horizon, names = self.policy.model.spec, self.policy.horizon, self.policy.observations
        batch, latent = len(keys), (spec.latent.channels, spec.latent.height, spec.latent.width)

        def rows(name: str, steps: int) -> Tensor:
            return torch.stack([_noise(self.policy, name, steps) for _ in keys])  # (B, steps, D)

        return {
            "history": {camera: torch.randn(batch, horizon.history, *latent) for camera in names.cameras},
            "future": {camera: torch.randn(batch, horizon.future, *latent) for camera in names.cameras},
            "action": rows("action", horizon.actions),
            "history_action": rows("action", horizon.actions),
            "low_dim": {name: rows(name, horizon.history) for name in names.low_dim},
            "future_low_dim": {name: rows(name, horizon.actions) for name in names.low_dim},
            "auxiliary": torch.randn(batch, horizon.history + horizon.future, spec.auxiliary_dim),
            "text": torch.randn(batch, spec.text_dim),
            "action_is_pad": torch.zeros(batch, horizon.actions, dtype=torch.bool),
            "frame_is_pad": torch.zeros(batch, horizon.future, dtype=torch.bool),
            "has_action": torch.ones(batch, dtype=torch.bool),
        }


def _noise(policy: UnifiedVideoActionPolicy, name: str, *lead: int) -> Tensor:
    """Random values (*lead, D) of a field of the policy's normaliser, in the data's units."""
    scale = policy.normalizer.scale(name).cpu()
    return (torch.rand(*lead, len(scale)) * 2 - 1 - policy.normalizer.offset(name).cpu()) / scale
