"""SIGTERM and SIGINT ask a run to stop after the step it is in."""

from __future__ import annotations

import signal
import threading
from types import FrameType

GRACE = 60  # seconds that a worker lives on after SIGTERM


class StopSignals:
    """Context in which the first SIGTERM or SIGINT is only noted; a second SIGINT interrupts as usual.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None  # name of the signal
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


def leave_signals_to_parent(worker: int = 0) -> None:
    """For loader workers: a signal to the whole process group is the training process's to answer.

    Until it has finished its step a worker goes on, yet not for ever: SIGTERM is also what ends a worker that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
