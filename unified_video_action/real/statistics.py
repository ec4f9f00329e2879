"""Figures of a run: how evenly the loop ticked, how long plans took, what was dropped or clipped."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

MOST = 1_000_000  # values of a series; more than an hour of ticks


class Series:
    """Durations of one kind, seconds. One thread adds to it; others read it when that thread has ended."""

    def __init__(self) -> None:
        self._values: list[float] = []

    def add(self, seconds: float) -> None:
        if len(self._values) < MOST:
            self._values.append(seconds)

    def summary(self) -> dict[str, float | int]:
        """count, and mean, std, p50, p99, max in milliseconds where there is anything."""
        if not self._values:
            return {"count": 0}
        values = np.array(self._values) * 1e3
        figures = {
            "mean_ms": values.mean(),
            "std_ms": values.std(),
            "p50_ms": np.percentile(values, 50),
            "p99_ms": np.percentile(values, 99),
            "max_ms": values.max(),
        }
        return {"count": len(values)} | {name: round(float(value), 4) for name, value in figures.items()}


class Statistics:
    """What one run of the loop leaves behind."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.period = Series()  # between the beginnings of two ticks
        self.late = Series()  # of a tick's beginning after its deadline
        self.work = Series()  # that a tick took
        self.plan = Series()  # from an observation's being made to its plan
        self.plan_age = Series()  # from the newest frame to the plan's arrival
        self.counts: Counter[str] = Counter()  # plans, failed plans, stale actions, blends, missed deadlines, ...
        self.clipped: Counter[str] = Counter()  # safety rule -> ticks in which it changed a command
        self.stops: list[dict[str, Any]] = []  # reason, text, time since the start

    def summary(self) -> dict[str, Any]:
        """JSON-like; milliseconds and counts."""
        return {
            "control_rate": self.rate,
            "period": self.period.summary(),
            "late": self.late.summary(),
            "work": self.work.summary(),
            "plan": self.plan.summary(),
            "plan_age": self.plan_age.summary(),
            "counts": dict(sorted(self.counts.items())),
            "clipped": dict(sorted(self.clipped.items())),
            "stops": self.stops,
        }

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.summary(), indent=1) + "\n")

    def lines(self) -> list[str]:
        """For the log."""
        summary = self.summary()
        found = []
        for name in ("period", "late", "work", "plan", "plan_age"):
            part = summary[name]
            if part["count"]:
                shown = ", ".join(f"{key[:-3]} {value:.2f}" for key, value in part.items() if key != "count")
                found.append(f"{name:9} {part['count']} times, ms: {shown}")
        for name in ("counts", "clipped"):
            if summary[name]:
                found.append(f"{name:9} " + ", ".join(f"{key} {value}" for key, value in summary[name].items()))
        return found
