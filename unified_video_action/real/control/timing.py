"""The ticks of a control loop at absolute deadlines, and the figures of a run."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MOST = 1_000_000  # durations of one kind that are kept; more than an hour of ticks


class Pacer:
    """Waits for the next tick of an even row of deadlines, so that delays do not add up.

    A deadline that has passed by more than a period is not made up for with a burst of ticks: the next tick comes at
    once and stands for all that were missed.
    """

    def __init__(self, rate: float, now: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.period = 1.0 / rate
        self._now, self._sleep = now, sleep
        self.deadline = now()  # of the present tick

    def wait(self) -> tuple[int, float]:
        """Sleep until the next deadline; return how many ticks have passed (1 if none was missed) and the lateness."""
        left = self.deadline + self.period - self._now()
        if left > 0:
            self._sleep(left)
        late = max(self._now() - self.deadline - self.period, 0.0)
        passed = 1 + math.floor(late / self.period)
        self.deadline += passed * self.period
        return passed, late - (passed - 1) * self.period


class Statistics:
    """The figures of one run. `durations` are seconds; each kind is added to by one thread.

    period: between the beginnings of two ticks; late: of a tick's beginning after its deadline; work: of a tick;
    plan: from an observation to its plan; plan_age: from the newest frame to the plan's arrival.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.durations: dict[str, list[float]] = {name: [] for name in ("period", "late", "work", "plan", "plan_age")}
        self.counts: Counter[str] = Counter()  # plans, failed plans, stale actions, blends, missed deadlines, ...
        self.clipped: Counter[str] = Counter()  # safety rule -> ticks in which it changed a command
        self.stops: list[dict[str, Any]] = []  # reason, text, time

    def add(self, name: str, seconds: float) -> None:
        if len(self.durations[name]) < MOST:
            self.durations[name].append(seconds)

    def summary(self) -> dict[str, Any]:
        """JSON-like: counts, and of durations mean, std, p50, p99 and max in milliseconds."""
        found: dict[str, Any] = {"control_rate": self.rate}
        for name, seconds in self.durations.items():
            found[name] = {"count": len(seconds)}
            if seconds:
                ms = np.array(seconds) * 1e3
                middle, tail = np.percentile(ms, (50, 99))
                figures = {"mean": ms.mean(), "std": ms.std(), "p50": middle, "p99": tail, "max": ms.max()}
                found[name] |= {f"{key}_ms": round(float(value), 4) for key, value in figures.items()}
        counts, clipped = (dict(sorted(each.items())) for each in (self.counts, self.clipped))
        return found | {"counts": counts, "clipped": clipped, "stops": self.stops}

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.summary(), indent=1) + "\n")

    def lines(self) -> list[str]:
        """For the log."""
        parts = {name: part for name, part in self.summary().items() if isinstance(part, dict) and any(part.values())}
        return [f"{name}: {', '.join(f'{key} {value}' for key, value in part.items())}" for name, part in parts.items()]
