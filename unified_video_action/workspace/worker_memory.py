"""Memory that a loader's worker shares with the training process and uses again: fresh pages cost more than a batch."""

from __future__ import annotations

import torch
from torch import Tensor


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
