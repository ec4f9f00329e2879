"""The matrix products of a computation, timed apart from everything else in it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from unified_video_action.evaluation.timing import Bench

aten = torch.ops.aten
FUSED = {  # attention as one operation; the counter of operations does not know the CPU's
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}


class _Shape:
    """A tensor without its values."""

    def __init__(self, tensor: Tensor) -> None:
        self.size, self.stride = tuple(tensor.shape), tensor.stride()
        self.dtype, self.device = tensor.dtype, tensor.device

    def __repr__(self) -> str:
        return f"{self.size} {self.stride} {self.dtype}"

    def noise(self) -> Tensor:
        reach = 1 + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        values = torch.zeros(reach, dtype=self.dtype, device=self.device)
        values = values.normal_() if self.dtype.is_floating_point else values
        return values.as_strided(self.size, self.stride)  # an expanded tensor too


class _Recording(TorchDispatchMode):
    """Notes every matrix product, convolution and fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Callable, tuple, dict]] = {}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket in flop_registry or func._overloadpacket in FUSED:
            shapes = tree_map(lambda value: _Shape(value) if isinstance(value, Tensor) else value, (args, kwargs))
            key = f"{func} {shapes}"
            self.calls[key] = (func, *shapes)
            self.counts[key] += 1
        return func(*args, **kwargs)


def time_products(bench: Bench, compute: Callable[[], Any]) -> float:
    """Run `compute` once, then each of its products by itself, on noise; seconds that all of them take together."""
    with _Recording() as found:
        compute()
    total = 0.0
    with torch.no_grad():
        for key, (func, *shapes) in found.calls.items():
            args, kwargs = tree_map(lambda value: value.noise() if isinstance(value, _Shape) else value, tuple(shapes))
            runs = [bench.time(lambda func=func, a=args, k=kwargs: func(*a, **k)) for _ in range(1 + bench.repeats)]
            total += found.counts[key] * statistics.median(runs[1:])
    return total
