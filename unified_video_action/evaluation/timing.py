"""How long a policy takes to act: latency by part (rows of the paper's Table VII and those of frame generation).

Times do not depend on what the weights are or what the frames show, so observations and batches are noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unified_video_action.inference.engine import PRECISIONS, Engine
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.unified_video_action_policy import UnifiedVideoActionPolicy

Times = dict[str, float]  # part -> seconds
Rows = dict[str, dict[str, float]]  # part -> median, min and max, in milliseconds

PARTS = {  # name -> the engine's method
    "VAE encode": "encode",
    "transformer": "joint_latent",
    "action diffusion": "denoise_actions",
    "video diffusion": "denoise_frames",
    "VAE decode": "decode",
}


@dataclass(frozen=True)
class Bench:
    """Where and how often to measure."""

    device: torch.device
    dtype: torch.dtype | None = None  # of autocast; None: off
    repeats: int = 20
    warmup: int = 3

    @property
    def precision(self) -> str:
        """The name of `dtype`."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == (self.dtype or torch.float32))

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
    def stopwatch(self, engine: Engine) -> Iterator[Times]:
        """Within the context the parts of the engine add their seconds to the mapping."""
        times: Times = {}

        def timed(part: str, method: Callable) -> Callable:
            @wraps(method)
            def run(*args: Any, **kwargs: Any) -> Any:
                results: list = []
                seconds = self.time(lambda: results.append(method(*args, **kwargs)))
                times[part] = times.get(part, 0.0) + seconds
                return results[0]

            return run

        for part, method in PARTS.items():
            setattr(engine, method, timed(part, getattr(engine, method)))
        try:
            yield times
        finally:
            for method in PARTS.values():
                delattr(engine, method)  # the class's own shows again


def time_latency(
    policy: UnifiedVideoActionPolicy, bench: Bench, image: tuple[int, int], batch: int = 1, sampler: str | None = None
) -> dict[str, Rows]:
    """Time planning in `batch` environments with frames of (height, width) `image`.

    Returns:
        rows of a plan whose history is all new, of one that remembers frames of the plan before it, and of a plan with
        imagined frames.
    """
    policy.eval()
    session = PolicySession(policy, slots=batch, sampler=sampler, precision=bench.precision)
    text_dim, horizon = policy.model.spec.text_dim, policy.horizon
    text = torch.zeros(text_dim, device=bench.device) if text_dim else None
    frame = np.random.default_rng(0).integers(256, size=(*image, 3), dtype=np.uint8)
    observation = dict.fromkeys(policy.observations.cameras, frame)
    observation |= {name: noise(policy, name).numpy() for name in policy.observations.low_dim}

    def observe(steps: int) -> None:
        for slot in range(batch):
            for _ in range(steps):
                session.observe(observation, slot)

    def measure(predict: Callable[[], Any], remember: bool = False) -> Times:
        for slot in range(batch):
            session.reset(slot, text=text)
        observe(1 - horizon.history_offsets[0])
        if remember:
            session.plan()
            observe(policy.action_steps)
        with bench.stopwatch(session.engine) as times:
            total = bench.time(predict)
        return {**times, "total": total}

    new = sum(-policy.action_steps < offset for offset in horizon.history_offsets)
    return {
        f"policy, {horizon.history} new frames": bench.summarise(lambda: measure(session.plan)),
        f"policy, {new} new frames": bench.summarise(lambda: measure(session.plan, remember=True)),
        "policy and video": bench.summarise(lambda: measure(session.imagine)),
    }


def noise(policy: UnifiedVideoActionPolicy, name: str, *lead: int) -> Tensor:
    """Random values (*lead, D) of a field of the policy's normaliser, in the data's units."""
    scale = policy.normalizer.scale(name).cpu()
    return (torch.rand(*lead, len(scale)) * 2 - 1 - policy.normalizer.offset(name).cpu()) / scale
