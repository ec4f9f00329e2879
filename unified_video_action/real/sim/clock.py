"""Time for a simulated robot: the computer's, or one that a test or a collector of demonstrations moves itself."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable


class Clock(ABC):
    """What tells the time, seconds, and lets it pass."""

    runs_alone: bool  # time passes by itself; otherwise only by `sleep`

    @abstractmethod
    def time(self) -> float: ...

    @abstractmethod
    def sleep(self, seconds: float) -> None: ...


class RealClock(Clock):
    """`time.monotonic()`."""

    runs_alone = True

    def time(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)


class ManualClock(Clock):
    """Time that passes only while its one thread sleeps, and then at once: as fast as the simulation can be computed.

    Whoever follows it is called with the new time before `sleep` returns, so that a run is the same every time.
    """

    runs_alone = False

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._followers: list[Callable[[float], None]] = []

    def time(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self._now += seconds
            for follow in self._followers:
                follow(self._now)

    def follow(self, call: Callable[[float], None]) -> None:
        """Have `call(now)` called whenever time has passed."""
        self._followers.append(call)

    def leave(self, call: Callable[[float], None]) -> None:
        self._followers.remove(call)
