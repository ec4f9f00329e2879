"""A copy of this process to try something in: exact for any simulator without threads or a GPU of its own."""

import multiprocessing
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TypeVar

T = TypeVar("T")


def in_copy(function: Callable[[], T]) -> T:
    """Call `function` in a forked copy of this process and return its result; this process stays as it is.

    The physics of a simulator often keeps more than positions and velocities (contacts and their impulses), so a copy
    made object by object drifts away from the original. POSIX only.

    Raises:
        RuntimeError: the function raised, or the copy died.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    copy = context.Process(target=_answer, args=(function, sender))
    copy.start()
    sender.close()
    succeeded, answer = False, "it died"
    with receiver, suppress(EOFError):
        succeeded, answer = receiver.recv()
    copy.join()
    if not succeeded:
        raise RuntimeError(f"a copy of the process failed: {answer}")
    return answer


def _answer(function: Callable[[], object], sender: Connection) -> None:
    try:
        sender.send((True, function()))
    except Exception:
        sender.send((False, traceback.format_exc()))
