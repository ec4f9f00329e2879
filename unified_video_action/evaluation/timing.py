"""What measurements of time share: where and how often to measure, and the rate of a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REPEATS, SECONDS = 20, 0.2  # of a matrix product, at most; a CPU may merely imitate bf16, and take long over it
PARTS = {"joint latent": "transformer", "actions": "action diffusion", "states": "state diffusion"}

Times = dict[str, float]  # part -> seconds
Rows = dict[str, dict[str, float]]  # part -> median, min and max, in milliseconds


@dataclass(frozen=True)
class Bench:
    """Where and how often to measure."""

    device: torch.device
    precision: str = "no"  # of autocast: no (off), bf16 or fp16
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
        self._finish()
        start = time.perf_counter()
        run()
        self._finish()
        return time.perf_counter() - start

    def autocast(self) -> AbstractContextManager:
        off = self.precision == "no"
        return nullcontext() if off else torch.autocast(self.device.type, PRECISIONS[self.precision])

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@lru_cache
def matrix_rate(device: torch.device, precision: str = "no") -> float:
    """Floating-point operations a second of large square matrix products on `device`, the best of a few.

    Args:
        precision: no (float32, as the process has set it up), bf16 or fp16.
    """
    size = 8192 if device.type == "cuda" else 512
    left, right, out = (torch.ones(size, size, device=device, dtype=PRECISIONS[precision]) for _ in range(3))
    bench, times = Bench(device), []
    with torch.no_grad():
        torch.mm(left, right, out=out)  # warms up
        while not times or (len(times) < REPEATS and sum(times) < SECONDS):
            times.append(bench.time(lambda: torch.mm(left, right, out=out)))
    return 2 * size**3 / min(times)


def part_of(name: Any) -> str:
    """What reports call a part of a model, given its name in `UVA.run`."""
    first = name[0] if isinstance(name, tuple) else name
    return PARTS.get(first, "video diffusion" if first.startswith("frames") else first)
