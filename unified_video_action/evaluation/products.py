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
from unified_video_action.model.attention import backward_attention, forward_attention

aten, ours = torch.ops.aten, torch.ops.unified_video_action
FORWARD = aten._scaled_dot_product_flash_attention_for_cpu  # of fused attention on a CPU
BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward
WRITTEN_OUT = {ours.attend: forward_attention, ours.attend_backward: backward_attention}


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


class Products(TorchDispatchMode):
    """Within the context, notes every matrix product and convolution: its shapes, strides and how often it occurs.

    A product has the bias that its call adds. Attention on a CPU counts as the products that it is defined by, two
    forward and four backward, each head's by itself: neither its softmax counts nor what it computes once more. On an
    accelerator fused attention counts as it is, since its products by themselves would take longer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Callable, tuple, dict]] = {}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, kind = kwargs or {}, func._overloadpacket
        if kind in WRITTEN_OUT:
            with self:
                return WRITTEN_OUT[kind](*args, **kwargs)
        if kind is FORWARD:
            self._note_attention(*args[:3])
        elif kind is BACKWARD:
            self._note_attention(*args[1:4], above=args[0])
        elif kind in flop_registry:
            self._note(func, args, kwargs)
        return func(*args, **kwargs)

    def _note(self, func: Callable, args: tuple, kwargs: dict | None = None, times: int = 1) -> None:
        shapes = tree_map(lambda value: _Shape(value) if isinstance(value, Tensor) else value, (args, kwargs or {}))
        key = f"{func} {shapes}"
        self.calls[key] = (func, *shapes)
        self.counts[key] += times

    def _note_attention(self, query: Tensor, key: Tensor, value: Tensor, above: Tensor | None = None) -> None:
        heads = query.shape[0] * query.shape[1]
        query, key, value = query[0, 0], key[0, 0], value[0, 0]  # (N, d), (M, d), (M, d)
        weights = query.new_empty(len(query), len(key))  # (N, M)
        pairs = [(query, key.mT), (weights, value)]
        if above is not None:
            above = above[0, 0]  # (N, d)
            pairs = [(weights.mT, above), (above, value.mT), (weights, key), (weights.mT, query)]
        for pair in pairs:
            self._note(aten.mm.default, pair, times=heads)


def time_products(bench: Bench, products: Products) -> float:
    """Each of the products by itself, on noise; seconds that all of them take together."""
    total = 0.0
    with torch.no_grad():
        for key, (func, *shapes) in products.calls.items():
            args, kwargs = tree_map(lambda value: value.noise() if isinstance(value, _Shape) else value, tuple(shapes))
            runs = [bench.time(lambda func=func, a=args, k=kwargs: func(*a, **k)) for _ in range(1 + bench.repeats)]
            total += products.counts[key] * statistics.median(runs[1:])
    return total
