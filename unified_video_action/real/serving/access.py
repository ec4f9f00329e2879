"""Who may connect to the policy server, and how many at a time."""

from __future__ import annotations

import asyncio
import errno
import hmac
import ipaddress
import logging
import os
import resource
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers

log = logging.getLogger(__name__)
VARIABLE = "UVA_SERVER_KEY"
SCHEME = "Api-Key "
SHORTEST = 16  # characters of a key
MAKE = """python -c 'import secrets; print(secrets.token_urlsafe())' > KEY"""
CONNECTIONS = 64  # before the websocket handshake, and as many after it
SHARE = 16  # of the files that this process may open
LOG_SECONDS = 10.0  # between two lines about the same thing


def resolve(host: str) -> str:
    """The address of a host's name. Raises ValueError for a name that has none."""
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise ValueError(f"--host {host}: {error.strerror}") from error


def read_key(address: str, file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The key in a file or, without one, in the environment; None where neither is given.

    Args:
        address: to listen on.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a key that could be guessed, or none for an address that other machines can reach.
    """
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"--key-file {file}: no such file; make one: {MAKE}")
    key = file.read_text().strip() if file is not None else environment.get(VARIABLE, "").strip()
    if not key and file is None:
        if ipaddress.ip_address(address).is_loopback:
            return None
        raise ValueError(
            f"--host {address} can be reached by other machines, and the server has no key: make one, {MAKE}, and "
            f"give it by --key-file KEY or ${VARIABLE}"
        )
    if len(key) < SHORTEST or not key.isascii() or not key.isprintable():
        source = f"--key-file {file}" if file is not None else f"${VARIABLE}"
        raise ValueError(f"{source}: a key has at least {SHORTEST} printable ASCII characters; make one: {MAKE}")
    return key


def has_key(headers: Headers, key: str | None) -> bool:
    """Whether a request carries the key; compared in a time that does not tell where they differ."""
    given = headers.get_all("Authorization")
    if key is None or len(given) != 1 or not given[0].startswith(SCHEME):
        return key is None
    return hmac.compare_digest(given[0].removeprefix(SCHEME).encode("utf-8", "replace"), key.encode())


def check_port(address: str, port: int, option: str) -> None:
    """Raises ValueError where this machine cannot listen there."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        socket.create_server((address, port), family=family).close()
    except (OSError, OverflowError) as error:
        code = getattr(error, "errno", None)
        why = str(error) if code is None else os.strerror(code)
        of_address = code in (errno.EADDRNOTAVAIL, errno.ENODEV)
        remedy = "give an address of this machine with --host" if of_address else f"choose another with {option}"
        raise ValueError(f"port {port} at {address}: {why}; {remedy}") from error


class Limiter:
    """Bounds the connections that have asked for nothing: where there are more than `most`, the oldest is closed.

    One for all ports of a server, since files are shared. A connection is anything with a `transport`.
    """

    def __init__(self) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most = CONNECTIONS if files < 0 else max(4, min(CONNECTIONS, files // SHARE))
        self.open: set[ServerConnection] = set()  # after their handshake
        self._silent: dict[Any, None] = {}  # oldest first
        self._logged: dict[str, float] = {}

    def spoke_or_ended(self, connection: Any) -> None:
        """A connection asked for something, or it ended."""
        self._silent.pop(connection, None)

    def accepted(self, connection: Any) -> None:
        """There is a connection that asked for nothing yet."""
        self._silent[connection] = None
        if len(self._silent) > self.most:
            self._drop_oldest(f"more than {self.most} connections say nothing: the oldest are closed")

    def loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """For an event loop whose server survives it when no file is left for a connection."""
        if "socket.accept()" in context["message"]:
            self._drop_oldest(f"a connection could not be accepted ({context['exception'].strerror}); this goes on")
        else:
            loop.default_exception_handler(context)

    def close(self) -> None:
        """End all that asked for nothing."""
        for connection in list(self._silent):
            connection.transport.abort()

    def _drop_oldest(self, why: str) -> None:
        if (now := time.monotonic()) - self._logged.get(why, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged[why] = now
            log.warning("%s", why)
        if oldest := next(iter(self._silent), None):
            self.spoke_or_ended(oldest)
            oldest.transport.abort()


class LimitedConnection(ServerConnection):
    """A connection that its limiter knows of."""

    def __init__(self, *arguments: Any, limiter: Limiter, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limiter = limiter

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._limiter.accepted(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._limiter.spoke_or_ended(self)
        super().connection_lost(error)
