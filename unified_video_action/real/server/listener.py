"""A listening socket that connections without an end cannot exhaust."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import time
from contextlib import suppress
from typing import Any

log = logging.getLogger(__name__)
CONNECTIONS = 64  # that have not shaken hands, and as many that have
FILES = 4  # that a connection keeps open
POLL_SECONDS = 0.5  # how soon it is noticed that the socket was closed
PAUSE_SECONDS = 0.1  # after a connection that could not be accepted
ROOM_SECONDS = 1.0  # after which a connection that does not end is not waited for any longer
LOG_SECONDS = 10.0  # between two lines about the same thing
FATAL = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP)  # of accept(2): this socket will never accept


def share_of_files() -> int:
    """Connections of one kind that fit into half of the files that this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if soft < 0 else max(4, min(CONNECTIONS, soft // (4 * FILES)))


def cannot_listen(address: str, port: int, option: str, error: Exception) -> str:
    """What to tell a user whose server cannot listen there."""
    why = str(error) if getattr(error, "errno", None) is None else os.strerror(error.errno)
    address_is_at_fault = getattr(error, "errno", None) in (errno.EADDRNOTAVAIL, errno.ENODEV)
    remedy = "give an address of this machine with --host" if address_is_at_fault else f"choose another with {option}"
    return f"port {port} at {address}: {why}; {remedy}"


class Listener(socket.socket):
    """Listens; `accept` survives what passes by itself, such as too many open files.

    Where more than `waiting` connections have not shaken hands yet, the oldest one is closed: a client that means it
    needs milliseconds for that.

    Raises:
        OSError: the port is taken.
        OverflowError: it is none.
    """

    def __init__(self, address: str, port: int, waiting: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__(fileno=socket.create_server((address, port), family=family).detach())
        self.settimeout(POLL_SECONDS)
        self.waiting = waiting
        self._unshaken: dict[socket.socket, bool] = {}  # oldest first; whether it was told to end
        self._logged: dict[str, float] = {}

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. Raises OSError only where there will be no other, or when the socket was closed."""
        while True:
            try:
                connection, peer = super().accept()
            except TimeoutError:
                if self.fileno() < 0:
                    raise
                continue
            except OSError as error:
                if self.fileno() < 0:
                    raise
                if error.errno in FATAL:
                    log.error("no connection can be accepted any more: %s", error)
                    raise
                self._say(f"a connection could not be accepted ({error.strerror}); this goes on")
                self._drop_oldest()
                time.sleep(PAUSE_SECONDS)
                continue
            self._make_room()
            self._unshaken[connection] = False
            return connection, peer

    def shaken(self, connection: socket.socket) -> None:
        """A connection that was accepted has shaken hands."""
        self._unshaken.pop(connection, None)

    def close(self) -> None:
        """Accept no more, and end those that have not shaken hands."""
        for each in list(self._unshaken):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        super().close()

    def _make_room(self) -> None:
        """Wait until fewer than `waiting` connections have not shaken hands: for as long as one takes to end."""
        end = time.monotonic() + ROOM_SECONDS
        while self.fileno() >= 0 and time.monotonic() < end:
            if len(self._left()) < self.waiting:
                return
            self._say(f"more than {self.waiting} connections say nothing: the oldest are closed")
            self._drop_oldest()
            time.sleep(PAUSE_SECONDS / 10)

    def _drop_oldest(self) -> None:
        """Have one connection end, if none is ending already."""
        unshaken = self._left()
        if unshaken and not any(unshaken.values()):
            oldest = next(iter(unshaken))
            self._unshaken[oldest] = True
            with suppress(OSError):  # it ended meanwhile
                oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it

    def _left(self) -> dict[socket.socket, bool]:
        """Those that have not shaken hands and have not ended."""
        for ended in [each for each in list(self._unshaken) if each.fileno() < 0]:
            self._unshaken.pop(ended, None)
        return dict(self._unshaken)

    def _say(self, what: str) -> None:
        now = time.monotonic()
        if now - self._logged.get(what, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged[what] = now
            log.warning("%s", what)
