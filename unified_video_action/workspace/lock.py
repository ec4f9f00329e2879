"""One training at a time in a folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".training.lock"  # held by the operating system, so it goes with the process however that ends
OWNER = ".training.owner"  # who holds it, for the message


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made, while training in it.

    Raises:
        ValueError: another process trains there; says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    owner = folder / OWNER
    try:
        lock.acquire()
    except Timeout as error:
        who = owner.read_text() if owner.is_file() else "another process"
        raise ValueError(
            f"output_dir={folder}: {who} trains there. Wait for it or stop it, or choose another output_dir"
        ) from error
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
        owner.unlink()
    finally:
        lock.release()
