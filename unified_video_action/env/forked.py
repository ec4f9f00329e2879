"""A copy of this process to try something in: exact for any simulator without threads or a GPU of its own."""

import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NoReturn, TypeVar

T = TypeVar("T")


def in_copy(function: Callable[[], T]) -> T:
    """Call `function` in a forked copy of this process and return its result; this process stays as it is.

    The physics of a simulator often keeps more than positions and velocities (contacts and their impulses), so a copy
    made object by object drifts away from the original. POSIX only.

    Raises:
        RuntimeError: the function raised, or the copy died.
    """
    receiver, sender = Pipe(duplex=False)
    with receiver:
        child = os.fork()
        if child == 0:
            _answer(function, sender)
        sender.close()
        succeeded, answer = False, "it died"
        with suppress(EOFError):
            succeeded, answer = receiver.recv()
        os.waitpid(child, 0)
    if not succeeded:
        raise RuntimeError(f"a copy of the process failed: {answer}")
    return answer


def _answer(function: Callable[[], object], sender: Connection) -> NoReturn:
    """Runs in the copy, which ends without cleaning up: what there is belongs to the original."""
    try:
        try:
            sender.send((True, function()))
        except Exception:
            sender.send((False, traceback.format_exc()))
    finally:
        os._exit(0)
