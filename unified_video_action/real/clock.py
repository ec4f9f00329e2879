"""The ticks of a control loop, at absolute deadlines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Pacer:
    """Waits for the next tick of an even row of deadlines, so that delays do not add up.

    A deadline that has passed by more than a period is not made up for with a burst of ticks: the next tick comes at
    once and stands for all that were missed.

    Args:
        rate: ticks per second.
        now, sleep: the clock; `sleep(seconds)` may take longer than it is told.
    """

    def __init__(
        self, rate: float, now: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        if not rate > 0:
            raise ValueError(f"rate={rate}: expected a positive number of ticks per second")
        self.period = 1.0 / rate
        self._now, self._sleep = now, sleep
        self._start = now()
        self.tick = 0  # number of the present deadline

    def wait(self) -> tuple[int, float]:
        """Sleep until the next deadline; return how many ticks have passed (1 if none was missed) and the lateness."""
        deadline = self._start + (self.tick + 1) * self.period
        left = deadline - self._now()
        if left > 0:
            self._sleep(left)
        late = max(self._now() - deadline, 0.0)
        passed = 1 + math.floor(late / self.period)
        self.tick += passed
        return passed, late - (passed - 1) * self.period if passed > 1 else late

    @property
    def deadline(self) -> float:
        """Time of the present tick."""
        return self._start + self.tick * self.period
