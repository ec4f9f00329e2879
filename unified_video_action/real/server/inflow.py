"""A bound on messages that never end: libzmq limits the size of a message's part, but not how many parts there are.

Parts are kept in libzmq until the last one came, out of this program's sight. What can be seen are the bytes that a
connection received (Linux), and when a message of it was complete.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, suppress

import zmq
from zmq.utils.monitor import recv_monitor_message

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.05  # between two looks; what arrives meanwhile comes on top of the bound
IDLE_BYTES = 64  # between two looks that are no more than libzmq's sign of life
RECEIVED = 128  # offset of tcpi_bytes_received (64 bits) in Linux's struct tcp_info


class Inflow:
    """Ends connections of a ZeroMQ server that send too much without completing a message. Not yet bound sockets only.

    Args:
        most: bytes since the last message of a connection that was complete.
    """

    def __init__(self, server: zmq.Socket, most: int) -> None:
        self.events = server.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED)
        self._server, self._most = server, most
        self._received: dict[int, tuple[int, int]] = {}  # file -> bytes at the last look, and at the last message
        self._identities: dict[int, bytes] = {}  # of those that sent a message

    @property
    def watches(self) -> bool:
        """Whether there is a connection to look at."""
        return bool(self._received)

    def ended(self) -> Iterator[bytes]:
        """Take note of connections that came and went; the identities of those that went."""
        while self.events.poll(0):
            event = recv_monitor_message(self.events)
            file = event["value"]
            self._received.pop(file, None)
            if (identity := self._identities.pop(file, None)) is not None:
                yield identity
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._received[file] = 0, 0

    def completed(self, file: int, identity: bytes) -> None:
        """A whole message came through that file."""
        if file in self._received:
            self._received[file] = (self._bytes(file),) * 2
            self._identities[file] = identity

    def look(self) -> None:
        """End what has gone too far."""
        for file, (before, complete) in list(self._received.items()):
            now = self._bytes(file)
            if now - before <= IDLE_BYTES:
                complete += now - before
            self._received[file] = now, complete
            if now - complete > self._most:
                log.warning("a connection sent %d bytes of a message without an end: closed", now - complete)
                self._end(file)

    def _bytes(self, file: int) -> int:
        """That a connection received until now; 0 where that cannot be known."""
        with suppress(OSError), closing(self._open(file)) as connection:
            information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RECEIVED + 8)
            if len(information) == RECEIVED + 8:
                return struct.unpack_from("=Q", information, RECEIVED)[0]
        return 0

    def _end(self, file: int) -> None:
        self._received.pop(file, None)
        with suppress(OSError), closing(self._open(file)) as connection:
            reset = struct.pack("ii", 1, 0)  # when libzmq, which reads the end now, closes it
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            connection.shutdown(socket.SHUT_RDWR)

    def _open(self, file: int) -> socket.socket:
        """A second handle of a connection. Raises OSError where the file is another one by now."""
        connection = socket.socket(fileno=os.dup(file))
        if connection.getsockname()[1] != int(self._server.last_endpoint.decode().rsplit(":", 1)[1]):
            connection.close()
            raise OSError("not of this server")
        return connection
