"""How fast a device multiplies matrices: what a model's rate is measured against."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

REPEATS, SECONDS = 20, 0.2  # at most; a CPU may merely imitate bf16, and take long over it


@lru_cache
def matrix_rate(device: torch.device, precision: str = "no") -> float:
    """Floating-point operations a second of large square matrix products on `device`, the best of a few.

    Args:
        precision: no (float32, as the process has set it up), bf16 or fp16.
    """
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    size = 8192 if device.type == "cuda" else 512
    left, right, out = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(3))
    times: list[float] = []
    with torch.no_grad():
        torch.mm(left, right, out=out)  # warms up
        while not times or (len(times) < REPEATS and sum(times) < SECONDS):
            _finish(device)
            began = time.perf_counter()
            torch.mm(left, right, out=out)
            _finish(device)
            times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
