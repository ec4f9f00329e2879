"""A history for clients that show only what they see now."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from unified_video_action.real.planner import ObservationEntry
from unified_video_action.spec import Horizon


class Window:
    """What one client showed, by the control step at which it did.

    Args:
        query_steps: control steps between two observations whose client does not count them.
    """

    def __init__(self, horizon: Horizon, entries: Mapping[str, ObservationEntry], query_steps: int) -> None:
        self._offsets, self._entries, self._query_steps = horizon.history_offsets, entries, query_steps
        self._seen: deque[tuple[int, Mapping[str, np.ndarray]]] = deque()  # steps grow

    def clear(self) -> None:
        self._seen.clear()

    def goes_back(self, step: int | None) -> bool:
        """Whether a step is not after the newest one, as at the start of another episode."""
        return step is not None and bool(self._seen) and step <= self._seen[-1][0]

    def add(self, observation: Mapping[str, np.ndarray], step: int | None = None) -> int:
        """Entry -> (*shape), seen at a control step; returns how many steps after the one before, 0 for the first."""
        before = self._seen[-1][0] if self._seen else None
        if step is None:
            step = 0 if before is None else before + self._query_steps
        self._seen.append((step, observation))
        while len(self._seen) > 1 and self._seen[1][0] <= step + self._offsets[0]:
            self._seen.popleft()  # the next one is old enough for the oldest frame of every plan to come
        return 0 if before is None else step - before

    def history(self) -> dict[str, np.ndarray]:
        """Entry -> (steps, *shape): for every time of the history the newest observation that is not newer than it;
        the oldest one for times before that."""
        now = self._seen[-1][0]
        shown = [self._at(now + offset) for offset in self._offsets]
        return {
            name: np.stack([each[name] for each in shown[len(shown) - entry.steps :]])
            for name, entry in self._entries.items()
        }

    def _at(self, step: int) -> Mapping[str, np.ndarray]:
        return next((seen for at, seen in reversed(self._seen) if at <= step), self._seen[0][1])


def picked(values: np.ndarray, offsets: tuple[int, ...], steps: int) -> np.ndarray | None:
    """Of a history (T, ...) with one entry per control step those `steps` that a policy reads; one that has just them
    already as it is; None for another length."""
    if len(values) == steps:
        return values
    return values[[offset - 1 for offset in offsets[-steps:]]] if len(values) > -offsets[0] else None
