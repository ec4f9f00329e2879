"""What a user reads: texts from outside as they may stand in a log, lists of names, and why a command cannot go on."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Number

FULL = "HYDRA_FULL_ERROR"  # environment variable, as Hydra has it: 1 shows tracebacks
DISK = (errno.ENOSPC, errno.EDQUOT)


def shown(text: object, most: int = 60) -> str:
    """One line of at most `most` characters: what is not printable is escaped, so that no text can forge a log line."""
    whole = str(text)
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in whole[:most])
    return line if len(line) <= most and len(whole) <= most else line[: most - 3] + "..."


def few(names: Iterable[object], most: int = 5, separator: str = ", ") -> str:
    """The first of some names, each cut to 100 characters, and how many more there are; "nothing" without any.

    What is neither a text, a number nor a path is named by its type: it may be of any size.
    """
    names = list(names)
    plain = [each if isinstance(each, str | Number | os.PathLike) else type(each).__name__ for each in names[:most]]
    listed = separator.join(shown(each, 100) for each in plain) or "nothing"
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")


@contextmanager
def one_line(program: str, resumes: str = "") -> Iterator[None]:
    """End the program with one message in place of a traceback, where the cause is a wrong input or the machine.

    Programming mistakes keep their traceback; HYDRA_FULL_ERROR=1 keeps all. `resumes` says how to go on afterwards.
    """
    from safetensors import SafetensorError

    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError, ImportError, FloatingPointError, SafetensorError) as error:
        if os.environ.get(FULL) == "1":
            raise
        of_machine = isinstance(error, OSError) and not isinstance(error, FileNotFoundError | FileExistsError)
        sys.exit(f"{program}: {describe(error)}{f'. Mended, {resumes}' if of_machine and resumes else ''}")


def describe(error: BaseException) -> str:
    """An error in words, with its remedy where the operating system or an import gave it."""
    if isinstance(error, OSError) and error.errno in DISK or "No space left" in str(error):
        return f"the disk is full ({error}). Free some space, or choose another folder"
    if isinstance(error, PermissionError) or isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"no permission to write or read: {error}. Choose another folder, or change its permissions"
    if isinstance(error, ImportError):
        return f"a package is missing or broken: {error}. `make sims` installs the simulators; see README"
    return str(error) or type(error).__name__
