"""The least time that the parts of a policy can take on a device: its arithmetic, or the reading of its weights.

The roofline of a part is the larger of two times: its operations at the device's rate for large matrices, and its
weights at the rate at which the device reads as many bytes. What can be computed once for all denoising steps (time
embeddings, conditions, modulations) is read once, the rest of a head at every step. Both rates are measured.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from unified_video_action.evaluation.inference_timing import new_frames
from unified_video_action.evaluation.timing import Bench, matrix_rate, part_of
from unified_video_action.policy.base import BasePolicy

ONCE = ("time_embed", "cond_embed", "modulation")  # of a denoising network: the same for all of its steps' inputs
LARGE = 2**29  # bytes that no accelerator's cache holds


@dataclass
class Work:
    """What a part has to do."""

    operations: float = 0.0  # floating-point
    uses: Counter[nn.Module] = field(default_factory=Counter)  # how often each layer with weights is called


@contextmanager
def counting(policy: BasePolicy) -> Iterator[dict[str, Work]]:
    """Within the context the parts of the policy add their work to the mapping; attention is written out."""
    parts: dict[str, Work] = {}

    def counted(name: Any, function: Callable, *tensors: Any) -> Any:
        work = parts.setdefault(part_of(name), Work())

        def called(module: nn.Module, *_: Any) -> None:
            if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.ndim > 1:
                work.uses[module] += 1

        hook = register_module_forward_hook(called)
        try:
            with FlopCounterMode(display=False) as counter:
                made = function(*(each if each is None else each.to(policy.device) for each in tensors))
        finally:
            hook.remove()
        work.operations += counter.get_total_flops()
        if isinstance(name, tuple):  # a head, whose denoising network is not called as a module
            label, sampler, _ = name
            heads = {"actions": policy.model.action_head, "states": getattr(policy.model, "proprio_head", None)}
            head = heads.get(label) or policy.model.video_heads[int(label.split()[-1])]
            work.uses.update({each: sampler.steps for each in head.net.modules() if isinstance(each, nn.Linear)})
        return made

    policy.model.replay = counted
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield parts
    finally:
        del policy.model.replay  # the class's own shows again


def reading_rate(device: torch.device, size: int) -> float:
    """Bytes a second at which a product of a matrix of `size` bytes and a vector reads it, the best of a few.

    On an accelerator at least LARGE bytes are read: a smaller read is over before its start is.
    """
    columns = 1024
    rows = max((size if device.type == "cpu" else max(size, LARGE)) // (4 * columns), 1)
    matrix, vector = torch.ones(rows, columns, device=device), torch.ones(columns, device=device)
    bench, best = Bench(device), float("inf")
    until = time.perf_counter() + 0.2
    torch.mv(matrix, vector)
    while time.perf_counter() < until:
        best = min(best, bench.time(lambda: torch.mv(matrix, vector)))
    return 4 * rows * columns / best


@torch.no_grad()
def roofline(
    policy: BasePolicy, precision: str = "no", batch: int = 1, sampler: str | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """The least milliseconds of each part of the plans that `time_latency` times.

    Args:
        precision: of the arithmetic and of the weights that are read: no (float32), bf16 or fp16.

    Returns:
        plan -> part -> compute, weights, and their larger one, roofline; and giga, the operations in units of 1e9. A
        part "total" has the sum of the rooflines. Nothing of other policies than UVA.
    """
    if not hasattr(policy, "encode_frames"):
        return {}
    task, history = policy.task, policy.task.horizon.history
    rate, half = matrix_rate(policy.device, precision), 1.0 if precision == "no" else 0.5
    once = {module for name, module in policy.model.named_modules() if any(part in name for part in ONCE)}

    def count(predict: Callable[..., Any]) -> dict[str, Work]:
        obs: dict[str, Any] = {name: torch.zeros(batch, task.state_steps, width) for name, width in task.states.items()}
        obs |= {"text": torch.zeros(batch, task.text_dim)} if task.text_dim else {}
        with counting(policy) as parts:
            for camera in task.cameras:
                frames = torch.zeros(batch, history, 3, *camera.size, dtype=torch.uint8)
                obs[camera.name] = policy.encode_frames(frames)
            predict(obs, sampler=sampler)
        return parts

    def bound(work: Work, share: float = 1.0) -> dict[str, float]:
        sizes = {module: half * module.weight.nbytes for module in work.uses}
        read = sum(size * (1 if module in once else work.uses[module]) for module, size in sizes.items())
        working_set = sum(size for module, size in sizes.items() if module not in once)
        compute = 1000 * share * work.operations / rate
        weights = 1000 * read / reading_rate(policy.device, int(working_set))
        return {
            "giga": share * work.operations / 1e9,
            "compute": compute,
            "weights": weights,
            "roofline": max(compute, weights),
        }

    acting, new = count(policy.predict_action), new_frames(policy)
    shares = {"VAE encode": new / history}
    plans = {
        f"policy, {history} new frames": {part: bound(work) for part, work in acting.items()},
        f"policy, {new} new frames": {part: bound(work, shares.get(part, 1.0)) for part, work in acting.items()},
    }
    if policy.imagines:
        imagined = count(policy.predict_action_and_video)
        plans["policy and video"] = {part: bound(work) for part, work in imagined.items()}
    return {
        plan: {**parts, "total": {"roofline": sum(part["roofline"] for part in parts.values())}}
        for plan, parts in plans.items()
    }
