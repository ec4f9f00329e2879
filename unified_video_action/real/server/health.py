"""How a server does: what it has planned, how fast, and what went wrong last."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

REMEMBERED = 1000  # plans that the times are of


class Health:
    """Counters that the inference thread writes and any thread reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._times: deque[float] = deque(maxlen=REMEMBERED)
        self._plans = self._errors = self._refused = 0
        self._last_error: tuple[str, float] | None = None
        self._begun: float | None = None  # when the plan in the making was begun

    @contextmanager
    def planning(self) -> Iterator[None]:
        self._begun = time.monotonic()
        try:
            yield
        finally:
            self._begun = None

    def planned(self, infer_ms: float) -> None:
        with self._lock:
            self._plans += 1
            self._times.append(infer_ms)

    def failed(self, what: str) -> None:
        with self._lock:
            self._errors += 1
            self._last_error = what, time.monotonic()

    def refused(self, what: str) -> None:
        """A message that was answered with an error."""
        with self._lock:
            self._refused += 1
            self._last_error = what, time.monotonic()

    def facts(self) -> dict[str, Any]:
        """JSON-like; times in milliseconds are of the last plans."""
        now, begun = time.monotonic(), self._begun
        with self._lock:
            times = np.array(self._times)
            last = (
                {"last": times[-1], "median": np.median(times), "p99": np.quantile(times, 0.99)} if len(times) else {}
            )
            error = self._last_error
            return {
                "uptime_s": now - self._started,
                "plans": self._plans,
                "failed": self._errors,
                "refused": self._refused,
                "infer_ms": {name: float(value) for name, value in last.items()},
                "planning_for_s": 0.0 if begun is None else now - begun,
                "last_error": None if error is None else {"text": error[0], "ago_s": now - error[1]},
            }

    def line(self, clients: int, most: int) -> str:
        facts = self.facts()
        times = facts["infer_ms"]
        speed = f", {times['median']:.1f} ms a plan (p99 {times['p99']:.1f})" if times else ""
        return (
            f"{clients} of {most} clients, {facts['plans']} plans{speed}, {facts['failed']} failed, "
            f"{facts['refused']} messages refused"
        )
