"""A ROUTER socket with bounds, which carries requests of REQ clients to a handler and its answers back."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from logging import getLogger
from typing import TYPE_CHECKING

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

if TYPE_CHECKING:
    from unified_video_action.real.serving.umi_arx import UmiHandler

log = getLogger(__name__)
WAITING = 4  # messages of one connection that are kept until they are read
CLEAR = 4  # a message so many times as long as any good one ends its connection; a shorter one gets an answer
HANDSHAKE_MS = 10_000
LINGER_MS = 200  # for the last answers to leave
LOOK_SECONDS = 0.05  # between two looks at what arrived; what comes meanwhile comes on top of the bound
IDLE_BYTES = 64  # between two looks that are no more than libzmq's sign of life
RECEIVED = 128  # offset of tcpi_bytes_received (64 bits) in Linux's struct tcp_info


@asynccontextmanager
async def listen(handler: UmiHandler, address: str, port: int) -> AsyncIterator[tuple[int, Coroutine]]:
    """Listen for REQ clients; yields the port, and what has to run for them to be answered.

    One message is answered after the other. A message that is too long, or that has parts without an end, ends its
    connection.

    Args:
        port: 0 takes a free one.

    Raises:
        ZMQError: the port is taken.
    """
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as server:
        server.maxmsgsize = CLEAR * handler.most_bytes  # of one part
        server.rcvhwm = server.sndhwm = WAITING
        server.linger, server.handshake_ivl = LINGER_MS, HANDSHAKE_MS
        server.heartbeat_ivl, server.heartbeat_timeout = 5000, 15000  # connections of the dead are closed
        connections = Connections(server, (CLEAR + 1) * handler.most_bytes)
        try:
            server.bind(f"tcp://{address}:{port or '*'}")
            yield connections.port, _run(server, handler, connections)
        finally:
            server.disable_monitor()


async def _run(server: zmq.asyncio.Socket, handler: UmiHandler, connections: Connections) -> None:
    def look() -> None:
        for identity in connections.ended():
            handler.left(identity)

    async def watch() -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            look()
            connections.end_those_without_an_end()

    async def answer() -> None:
        while True:
            frames = await server.recv_multipart(copy=False)
            look()
            identity = frames[0].bytes
            with suppress(zmq.ZMQError):  # a client as old as ZMTP 1, which does not say
                connections.completed(frames[-1].get(zmq.SRCFD), identity)
            if len(frames) == 3 and not len(frames[1]):  # identity, an empty one, the body
                body = await handler.answer(identity, frames[2].buffer)
            else:
                body = handler.refuse(f"{len(frames) - 1} frames: expected an empty one and a message")
            await server.send_multipart([identity, b"", body])

    await asyncio.gather(watch(), answer())


class Connections:
    """The connections of a socket that is not bound yet; ends those that send too much without completing a message.

    libzmq bounds the size of a message's part, but not how many parts there are, and keeps them out of sight until the
    last one came. What can be seen are the bytes that a connection received (Linux), and when a message was complete.

    Args:
        most: bytes since the last complete message of a connection.
    """

    def __init__(self, server: zmq.Socket, most: int) -> None:
        events = zmq.EVENT_ACCEPTED | zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED
        self._events = zmq.Socket.shadow(server.get_monitor_socket(events))
        self._server, self._most = server, most
        self._received: dict[int, tuple[int, int]] = {}  # file -> bytes at the last look, and at the last message
        self._identities: dict[int, bytes] = {}  # of those that sent a message

    @property
    def port(self) -> int:
        return int(self._server.last_endpoint.decode().rsplit(":", 1)[1])

    def ended(self) -> list[bytes]:
        """Note connections that came and went; the identities of those that went."""
        gone = []
        while self._events.poll(0):
            event = recv_monitor_message(self._events)
            file = event["value"]
            self._received.pop(file, None)
            if (identity := self._identities.pop(file, None)) is not None:
                gone.append(identity)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._received[file] = 0, 0
        return gone

    def completed(self, file: int, identity: bytes) -> None:
        """A whole message came through that file."""
        if file in self._received:
            self._received[file] = (self._bytes(file),) * 2
            self._identities[file] = identity

    def end_those_without_an_end(self) -> None:
        for file, (before, complete) in list(self._received.items()):
            now = self._bytes(file)
            if now - before <= IDLE_BYTES:
                complete += now - before
            self._received[file] = now, complete
            if now - complete > self._most:
                log.warning("a connection sent %d bytes of a message without an end: closed", now - complete)
                del self._received[file]
                with suppress(OSError), closing(self._open(file)) as connection:
                    reset = struct.pack("ii", 1, 0)  # when libzmq, which reads the end now, closes it
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                    connection.shutdown(socket.SHUT_RDWR)

    def _bytes(self, file: int) -> int:
        """That a connection received until now; 0 where that cannot be known."""
        with suppress(OSError), closing(self._open(file)) as connection:
            information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RECEIVED + 8)
            if len(information) == RECEIVED + 8:
                return struct.unpack_from("=Q", information, RECEIVED)[0]
        return 0

    def _open(self, file: int) -> socket.socket:
        """A second handle of a connection. Raises OSError where the file is another one by now."""
        connection = socket.socket(fileno=os.dup(file))
        if connection.getsockname()[1] != self.port:
            connection.close()
            raise OSError("not of this server")
        return connection
