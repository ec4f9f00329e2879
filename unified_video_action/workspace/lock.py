"""One training at a time in a folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made, while training in it; the system frees it however the process ends.

    Raises:
        ValueError: another process trains there; says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / ".training.owner"  # who holds it, for the message
    lock = FileLock(folder / ".training.lock", timeout=0)
    try:
        held = lock.acquire()
    except Timeout as error:
        who = owner.read_text() if owner.is_file() else "another process"
        raise ValueError(
            f"output_dir={folder}: {who} trains there. Wait for it or stop it, or choose another output_dir"
        ) from error
    with held:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
        owner.unlink()
