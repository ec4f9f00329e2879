"""Batches on the device before they are needed, and how long it had to wait for them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from unified_video_action.workspace.batches import MicroBatch
from unified_video_action.workspace.packing import Packed


class Feed:
    """Iterate over steps, lists of micro-batches on `device`.

    On CUDA the next step's block is copied on a stream of its own while a step computes; the host is at most one step
    ahead.
    """

    def __init__(self, steps: Iterator[Packed], device: torch.device) -> None:
        self.steps, self.device = steps, device
        self._seconds = 0.0  # that a CPU has waited
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []  # and a GPU: from, to

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        return self._copied_ahead() if self.device.type == "cuda" else self._as_they_come()

    def waited(self) -> float:
        """Seconds since the last call in which the device had nothing to do but wait for the loader.

        On CUDA, call this when the device has finished the newest step.
        """
        seconds = self._seconds + sum(start.elapsed_time(end) for start, end in self._gaps) / 1000
        self._seconds = 0.0
        self._gaps.clear()
        return seconds

    def _as_they_come(self) -> Iterator[list[MicroBatch]]:
        while True:
            began = time.perf_counter()
            packed = next(self.steps, None)
            self._seconds += time.perf_counter() - began
            if packed is None:
                return
            yield packed.unpack(self.device)

    def _copied_ahead(self) -> Iterator[list[MicroBatch]]:
        copying = torch.cuda.Stream(self.device)
        computing = torch.cuda.current_stream(self.device)

        def upcoming() -> Packed | None:
            packed = next(self.steps, None)
            if packed is None:
                return None
            with torch.cuda.stream(copying):
                return packed.to(self.device)

        ready, idle_from = upcoming(), None
        while ready is not None:
            computing.wait_stream(copying)
            ready.block.record_stream(computing)
            if idle_from is not None:
                self._gaps.append((idle_from, computing.record_event(torch.cuda.Event(enable_timing=True))))
            yield ready.unpack(self.device)
            idle_from = computing.record_event(torch.cuda.Event(enable_timing=True))
            ready = upcoming()
