"""What an accelerated model is made of: graphs that a CUDA device replays, so that Python and launches cost next to
nothing, copies in low precision, and whether the weights that they were made of are still the same."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

log = logging.getLogger(__name__)

WARM_UP = 3  # runs before a capture, in which libraries choose their kernels and take their workspaces
MOST_GRAPHS = 8  # of one function; each keeps memory of its own


class Weights:
    """The weights of a module at one moment, by where they lie and how often they were written to.

    `probe` is a small parameter that every step trains: fused optimisers write without counting.
    """

    def __init__(self, module: nn.Module, probe: Tensor) -> None:
        self._weights, self._probe = list(module.parameters()), probe.detach()
        self._state, self._values = self._now(), self._probe.clone()

    def require_unchanged(self) -> None:
        """Raise RuntimeError when they were written to since."""
        if self._state != self._now() or not torch.equal(self._values, self._probe):
            raise RuntimeError("the policy's weights changed since this session was made: make a new PolicySession")

    def _now(self) -> list[tuple[int, int]]:
        return [(weight.data_ptr(), weight._version) for weight in self._weights]


class Replays:
    """Functions of tensors by name, run without gradients and in a precision of their own.

    On a CUDA device each is captured as a graph for each combination of input shapes. A function may then not look at
    values, draw random numbers or upload anything. Inputs may lie in pinned host memory; outputs are the caller's.

    Args:
        dtype: that autocast computes in, whatever the caller's says; None: it is off.
        most: combinations of shapes that are captured of a function; any others run uncaptured.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None = None, most: int = MOST_GRAPHS) -> None:
        self.device, self.dtype, self.most = device, dtype, most
        self.captured: dict[Hashable, dict[tuple, tuple]] = {}  # name -> shapes -> graph, what it reads and writes

    def __call__(self, name: Hashable, function: Callable, *tensors: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        if self.device.type != "cuda":
            return self._run(function, [each if each is None else each.to(self.device) for each in tensors])
        captured = self.captured.setdefault(name, {})
        shapes = tuple(None if each is None else (each.shape, each.dtype) for each in tensors)
        if shapes not in captured:
            own = [None if each is None else each.to(self.device, copy=True) for each in tensors]
            if len(captured) == self.most:
                return self._run(function, own)
            captured[shapes] = self._capture(str(name), function, own)
        graph, own, outputs = captured[shapes]
        for mine, given in zip(own, tensors, strict=True):
            if mine is not None:
                mine.copy_(given, non_blocking=True)
        graph.replay()
        return tree_map(torch.clone, outputs)  # the next replay writes to the same memory

    @torch.no_grad()
    def _run(self, function: Callable, tensors: Sequence[Tensor | None]) -> Tensor | tuple[Tensor, ...]:
        # A cache of cast weights would live in the memory of the graph that is being captured.
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            return tree_map(lambda made: made.float() if made.is_floating_point() else made, function(*tensors))

    def _capture(self, name: str, function: Callable, inputs: list[Tensor | None]) -> tuple:
        start = time.perf_counter()
        aside = torch.cuda.Stream(self.device)
        aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._run(function, inputs)
        torch.cuda.current_stream(self.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._run(function, inputs)
        sizes = ", ".join("none" if each is None else "x".join(map(str, each.shape)) for each in inputs)
        log.info("%s: captured for %s in %.1f s", name, sizes, time.perf_counter() - start)
        return graph, inputs, outputs


def shallow_copy(module: nn.Module) -> nn.Module:
    """A copy whose parts may be replaced; they and their weights are shared until then."""
    made = copy.copy(module)
    made._modules = dict(module._modules)
    return made


def in_precision(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The module, or a copy whose products are in low precision."""
    if dtype is None:
        return module
    module = copy.deepcopy(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(dtype)
    return module
