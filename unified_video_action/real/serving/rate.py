"""Whether a client's control steps last as long as those of the data that a policy was trained on."""

from __future__ import annotations

from collections import deque

import numpy as np

TOLERANCE = 1.25  # by which a step may be longer or shorter
INTERVALS = 10  # between requests, whose median counts


class RateWatch:
    """Measures control steps by the clock.

    A robot may rest while it waits for a plan, or go on: a step lasts at least the time from an answer to the next
    request, and at most the time from one request to the next, by the number of steps between them.

    Args:
        step_seconds: of the training data; None: not known, and nothing is measured.
    """

    def __init__(self, step_seconds: float | None) -> None:
        self._trained = step_seconds
        self._intervals: deque[tuple[float, float]] = deque(maxlen=INTERVALS)  # shortest and longest step, seconds
        self._asked = self._answered = 0.0

    def clear(self) -> None:
        """An episode begins."""
        self._intervals.clear()
        self._asked = 0.0

    def asked(self, now: float, steps: int) -> str | None:
        """A request came, that many control steps after the one before (0: not known); what to note, if anything.

        Args:
            now: seconds of a steady clock.
        """
        if self._asked and self._trained is not None and steps:
            self._intervals.append(((now - self._answered) / steps, (now - self._asked) / steps))
        self._asked = self._answered = now
        if len(self._intervals) < INTERVALS:
            return None
        shortest, longest = np.median(np.array(self._intervals), axis=0)
        return self._said(shortest, "no more than ", fast=False) or self._said(longest, "no less than ", slow=False)

    def answered(self, now: float) -> None:
        self._answered = now

    def judge(self, seconds: float) -> str | None:
        """What is to be noted about control steps of that length, if anything."""
        return self._said(seconds)

    def _said(self, seconds: float, bound: str = "", slow: bool = True, fast: bool = True) -> str | None:
        if self._trained is None or not seconds > 0:
            return None
        ratio = seconds / self._trained
        if not (slow and ratio > TOLERANCE) and not (fast and ratio < 1 / TOLERANCE):
            return None
        times = f"stretched {ratio:.3g} times" if ratio > 1 else f"squeezed to {ratio:.2g} of their length"
        rate = f"{1 / self._trained:.3g} Hz"
        return (
            f"control steps come at {bound}{1 / seconds:.3g} Hz, those of the training data at {rate}: history and "
            f"actions are {times}; run the client at {rate}"
        )
