"""ZeroMQ's wire protocol, ZMTP 3 (RFC 23), as far as a REQ socket needs it that asks this machine for plans.

libzmq bounds the parts of a message, but not how many of them it keeps; here a message is bounded as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

from unified_video_action.real.serving.access import Limiter
from unified_video_action.real.serving.core import Core
from unified_video_action.real.serving.umi_arx import UmiHandler, most_bytes

log = logging.getLogger(__name__)
CLEAR = 4  # a message so many times as long as any good one ends its connection; a shorter one gets an answer
HANDSHAKE_SECONDS = 10.0
MORE, LONG, COMMAND = 1, 2, 4  # flags of a frame
HEAD = 9  # bytes, most that come before a frame's body
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"ROUTER"
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)  # version 3.0, no encryption


@asynccontextmanager
async def listen(core: Core, address: str, port: int, limiter: Limiter) -> AsyncIterator[tuple[int, Coroutine]]:
    """Listen for REQ clients; yields the port, and what runs for as long as connections are accepted.

    A message that is too long, or that has parts without an end, ends its connection.

    Args:
        port: 0 takes a free one. limiter: of the whole server's connections; it may close those without a slot.

    Raises:
        OSError: the port is taken.
    """
    most, connections = CLEAR * most_bytes(core), set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = UmiHandler(core)
        connections.add(writer.transport)
        limiter.accepted(writer)
        try:
            writer.write(GREETING)
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                greeting = await reader.readexactly(len(GREETING))
            if greeting[0] != 0xFF or greeting[10] < 3 or greeting[12:32] != GREETING[12:32]:
                raise ValueError("a greeting that is not ZMTP 3 without encryption")
            writer.write(_frame(READY, COMMAND))
            while True:
                parts = await _message(reader, writer, most)
                if len(parts) == 2 and not parts[0]:
                    answer = await handler.answer(parts[1])
                else:
                    answer = handler.refuse(f"{len(parts)} frames: expected an empty one and a message")
                if handler.has_slot:
                    limiter.spoke_or_ended(writer)
                writer.write(_frame(b"", MORE) + _frame(answer))
                await writer.drain()
        except ValueError as error:
            log.warning("UMI client: %s: closed", error)
        except (OSError, asyncio.IncompleteReadError):
            log.debug("UMI client: the connection ended")
        finally:
            handler.close()
            limiter.spoke_or_ended(writer)
            connections.discard(writer.transport)
            writer.transport.abort()

    async with await asyncio.start_server(talk, address, port, limit=most) as server:
        try:
            yield server.sockets[0].getsockname()[1], server.serve_forever()
        finally:
            for each in list(connections):
                each.abort()


def _frame(body: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BQ", flags | LONG, len(body)) + body


async def _message(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int) -> list[bytes]:
    """The parts of the next message; commands before it are followed. Raises ValueError for more than `most` bytes."""
    parts, left = [], most
    while True:
        (flags,) = await reader.readexactly(1)
        size = int.from_bytes(await reader.readexactly(8 if flags & LONG else 1))
        left -= HEAD + size
        if left < 0:
            raise ValueError(f"a message of more than {most} bytes")
        body = await reader.readexactly(size)
        if not flags & COMMAND:
            parts.append(body)
            if not flags & MORE:
                return parts
        elif body.startswith(b"\x04PING"):
            writer.write(_frame(b"\x04PONG" + body[7:], COMMAND))  # after a lifetime of two bytes its context
            await writer.drain()
            left += HEAD + size
