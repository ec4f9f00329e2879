"""Memory that a process uses again: touching new pages costs a loader's worker more than reading, converting and
packing a batch, and a training step on a CPU up to a third of its time.

So freed memory stays with the process, and the blocks that it shares with the training process go round in a ring.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Let this process reuse what it frees, large tensors too, in place of returning it to the system (Linux)."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class SharedRing:
    """Blocks that the training process sees, handed out in turn: the oldest is overwritten."""

    def __init__(self, count: int) -> None:
        self._blocks = [torch.empty(0, dtype=torch.uint8)] * count
        self._next = 0

    def block(self, size: int) -> Tensor:
        """(size,) uint8, valid until as many further ones have been asked for as there are blocks."""
        place, self._next = self._next, (self._next + 1) % len(self._blocks)
        if len(self._blocks[place]) < size:
            storage = torch.UntypedStorage._new_shared(size)
            self._blocks[place] = torch.empty(0, dtype=torch.uint8).set_(storage)
        return self._blocks[place][:size]
