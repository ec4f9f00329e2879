"""Answers umi-arx's client: a pickled array of actions, or a pickled text where there are none.

Its histories have one entry per control step, or just those that the policy reads. They carry no times, but those of
two requests overlap: how far the newest frame of one has moved in the next tells how many steps lie between.

It speaks ZeroMQ's wire protocol, ZMTP 3 (RFC 23), which is read here as far as a REQ socket needs it: libzmq bounds the
parts of a message, but not how many of them it keeps; here a message is bounded as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from unified_video_action.compat import plain_pickle, umi_arx
from unified_video_action.poses import KINDS
from unified_video_action.real.planner import PolicyDescription
from unified_video_action.real.serving.access import Limiter
from unified_video_action.real.serving.core import Client, Core, open_soon
from unified_video_action.real.serving.histories import RateWatch, as_trained, picked
from unified_video_action.real.serving.requests import BAD_REQUEST, CLEAR, OVERHEAD, POLICY_FAILED, Refused, bad, kind

log = logging.getLogger(__name__)
GRACE_SECONDS = 2.0  # for the plan to end that a client asked for before it was restarted
SPARSE = 8  # every so many pixels of a frame are compared with another's
HANDSHAKE_SECONDS = 10.0
MORE, LONG, COMMAND = 1, 2, 4  # flags of a frame
HEAD = 9  # bytes, most that come before a frame's body
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"ROUTER"
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)  # version 3.0, no encryption


class UmiHandler:
    """Answers one connection's messages, one after the other; its client gets a slot with the first good one."""

    def __init__(self, core: Core) -> None:
        self._core, self._end_effector, (self._camera,) = core, core.description.end_effector, core.spec.cameras
        self._client: Client | None = None
        self._rate = RateWatch(core.description.step_seconds)
        self._text: str | None = None  # the episode's instruction
        self._newest: np.ndarray | None = None  # (3, h, w) some pixels of the frame that was seen last

    @property
    def has_slot(self) -> bool:
        return self._client is not None

    async def answer(self, data: bytes) -> bytes:
        """The answer to a message. Raises nothing, whatever `data` is."""
        try:
            message, observation, text = self._read(data)
            step = self._step_seconds(message)
            if self._client is None:
                self._client = await open_soon(self._core, "UMI client", seconds=GRACE_SECONDS)
                if step is None and (trained := self._core.description.step_seconds) is not None:
                    log.warning(
                        "UMI client: its messages do not say its rate of control, which must be that of the training "
                        "data: run it with %s (its default is 8 Hz)", umi_arx.frequency(trained),
                    )  # fmt: skip
            if not self._client.has_episode or self._text != text:
                self._text = text
                await asyncio.wrap_future(self._client.reset(0, text))
            moved = self._moved(message[umi_arx.CAMERA])
            said = self._rate.asked(time.monotonic(), moved) if step is None else self._rate.judge(step)
            if said:
                self._client.note("rate", f"{said} (its option -f)")
            plan = await asyncio.wrap_future(self._client.plan(observation))
            self._rate.answered(time.monotonic())
            return plain_pickle.write(plan.actions)
        except Refused as error:
            return self.refuse(error)
        except Exception as error:  # a mistake of ours must not end the connection
            log.exception("a message could not be handled")
            return self.refuse(Refused(POLICY_FAILED, f"the server failed ({type(error).__name__})"))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def refuse(self, error: Refused) -> bytes:
        log.warning("UMI client: %s", error.text)
        self._core.refused(str(error))
        return plain_pickle.write(error.text)

    def _read(self, data: bytes) -> tuple[Mapping[str, Any], dict[str, np.ndarray], str | None]:
        """A message, the observations in it, entry -> (steps, ...), and its instruction."""
        description, made = self._core.description, {}
        try:
            message = plain_pickle.read(data, most_bytes(self._core))
            if not isinstance(message, dict):
                raise ValueError(f"a message that is a {type(message).__name__}: expected a dict")
            found = umi_arx.observations(message, self._camera, self._end_effector.states)
            text = umi_arx.instruction(message, description.instructions) if description.follows_text else None
        except ValueError as error:
            raise Refused(BAD_REQUEST, str(error)) from error
        for name, value in found.items():
            entry = self._core.spec.entries[name]
            if not isinstance(value, np.ndarray) or not value.ndim or not value.size:
                raise bad(name, kind(value), "an array (T, ...)")
            chosen = picked(value, description.horizon.history_offsets, entry.steps)
            if chosen is None:
                wanted = f"{entry.steps}, or {history_steps(description)} with one for each control step"
                raise bad(name, f"{len(value)} steps", wanted)
            made[name] = as_trained(name, chosen, entry, resize=False) if name == self._camera else chosen
        return message, made, text

    def _step_seconds(self, message: Mapping[str, Any]) -> float | None:
        """The length of a control step, by the times of the observations where the client sends them."""
        stamps, frames = message.get(umi_arx.TIMESTAMP), message[umi_arx.CAMERA]
        if stamps is None:
            return None
        fits = isinstance(stamps, np.ndarray) and stamps.dtype.kind == "f" and stamps.shape == frames.shape[:1]
        if not fits or len(stamps) < 2 or not (np.diff(stamps) > 0).all():
            wanted = f"the growing times in seconds of {len(frames)} frames"
            raise Refused(BAD_REQUEST, f"{umi_arx.TIMESTAMP}: expected {wanted}")
        horizon = self._core.description.horizon
        return float(np.median(np.diff(stamps))) / (horizon.stride if len(stamps) == horizon.history else 1)

    def _moved(self, frames: np.ndarray) -> int:
        """Control steps since the request before, by where its newest frame lies in this history; 0: not known."""
        sparse = frames[..., ::SPARSE, ::SPARSE].copy()
        before, self._newest = self._newest, sparse[-1]
        if before is None or len(frames) == self._core.description.horizon.history or before.shape != sparse[0].shape:
            return 0
        matches = [index for index, each in enumerate(sparse) if np.array_equal(each, before)]
        return len(frames) - 1 - matches[0] if len(matches) == 1 else 0  # a scene at rest tells nothing


def history_steps(description: PolicyDescription) -> int:
    """Of a history that ends with the newest observation and has one entry per control step."""
    return description.horizon.history * description.horizon.stride


def most_bytes(core: Core) -> int:
    """Of a message: a history of every control step in float64, or in float32 as the oldest protocols write it."""
    step = 8 * int(np.prod(core.spec.entries[core.spec.cameras[0]].shape)) + 8 * sum(KINDS.values())
    return history_steps(core.description) * step + OVERHEAD


def client_yaml(description: PolicyDescription) -> str:
    """The configuration of umi-arx's client for a policy of one end effector with one camera."""
    (shape,) = (entry.shape for entry in description.observations.values() if entry.kind == "rgb")
    end_effector, horizon = description.end_effector, description.horizon
    relative = end_effector.relative_states, end_effector.relative_actions
    sizes = history_steps(description), horizon.actions, description.step_seconds
    return umi_arx.client_yaml(description.name, shape[:2], end_effector.states, relative, *sizes)


def require_one_end_effector(description: PolicyDescription) -> None:
    """Raises ValueError for a policy that umi-arx's client cannot use."""
    if (
        description.end_effector is None
        or [entry.kind for entry in description.observations.values()].count("rgb") != 1
    ):
        raise ValueError(
            f"--allow-umi-pickle: {description.name} does not move one end effector with one camera; its configuration "
            "has no task.end_effector, or more than one rgb observation"
        )


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
                    said = f"{len(parts)} frames: expected an empty one and a message"
                    answer = handler.refuse(Refused(BAD_REQUEST, said))
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
