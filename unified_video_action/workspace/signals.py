"""SIGTERM and SIGINT ask a run to stop after the step it is in."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 60  # seconds that a worker lives on after SIGTERM


@contextmanager
def noted_signals() -> Iterator[list[str]]:
    """Names of the signals that have come; only a second SIGINT interrupts as usual.

    Outside the main thread, where Python allows no handlers, nothing is noted.
    """
    names: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and names:
            raise KeyboardInterrupt
        names.append(signal.Signals(number).name)

    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield names
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_signals_to_parent(worker: int = 0) -> None:
    """For loader workers: a signal to the whole process group is the training process's to answer.

    Until it has finished its step a worker goes on, yet not for ever: SIGTERM is also what ends a worker that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
