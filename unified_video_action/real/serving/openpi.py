"""openpi's websocket protocol: metadata on connecting, then an answer to each observation.

A client sends one observation at a time, of which the server makes histories, or whole histories (T, ...). Any
observation of the checkpoint may go by its own name, with or without `observation/` before it; `observation/image` is
the first camera, `observation/wrist_image` the second, `observation/state` all states side by side in the checkpoint's
order, `prompt` the instruction. Optional fields of ours:

    step                      control step of the observation
    reset, seed               True begins an episode, with this seed of its noise; without observations it only does so
    prefix, prefix_weights    actions (n, D) that the chunk keeps to, and by how much (n,): see Continuation

An answer has `actions` (A, D), `server_timing` in milliseconds and, where there is something that the user should know,
`server_notes`. openpi's protocol does not say when an episode begins. It does where the client says `reset`, where
`step` goes back, where the prompt is another one, and, for a client that never says `reset`, after a pause.

An error is a text, after which the connection is closed with code 1011 and the error's code word as its reason.
"""

from __future__ import annotations

import asyncio
import http
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from unified_video_action.compat.openpi_messages import PROMPT, observations, pack, unpack
from unified_video_action.messages import few
from unified_video_action.real.serving.access import LimitedConnection, Limiter, has_key
from unified_video_action.real.serving.core import Client, Core, open_soon
from unified_video_action.real.serving.histories import LARGEST, RateWatch, Window, as_trained, pixels
from unified_video_action.real.serving.requests import (
    BAD_REQUEST,
    BUSY,
    CLEAR,
    OVERHEAD,
    POLICY_FAILED,
    Refused,
    bad,
    kind,
)

log = logging.getLogger(__name__)
STEP, RESET, SEED, PREFIX, WEIGHTS = "step", "reset", "seed", "prefix", "prefix_weights"
PAUSE_SECONDS = 5.0  # between an answer and the next observation, after which that begins an episode
ERROR, TOO_BIG = 1011, 1009
HANDSHAKE_SECONDS, CLOSE_SECONDS = 10.0, 2.0


class OpenpiHandler:
    """Answers one connection's messages, one after the other.

    Args:
        query_steps: control steps between two observations of a client that does not count them.
    """

    def __init__(self, core: Core, client: Client, query_steps: int) -> None:
        self._core, self._client, self._spec = core, client, core.spec
        self._window = Window(core.description.horizon, core.spec.entries, query_steps)
        self._prompt: str | None = None
        self._episodes = 0
        self._resets = False  # whether the client says itself when an episode begins
        self._answered = time.monotonic()
        self._previous: dict[str, float] = {}  # timing of the message before
        self._rate = RateWatch(core.description.step_seconds)

    async def answer(self, data: bytes) -> bytes:
        """The answer to a message. Raises Refused."""
        begun = time.monotonic()
        message, found = self._read(data)
        step, reset = message.get(STEP), message.get(RESET, False)
        if step is not None and not (isinstance(step, int | np.integer) and 0 <= step < 2**31):
            raise Refused(BAD_REQUEST, f"{STEP}: expected a whole number, of control steps since the episode began")
        if not isinstance(reset, bool | np.bool_):
            raise bad(RESET, kind(reset), "true or false")
        prompt = self._spec.text(message.get(PROMPT)) if self._core.description.follows_text else None
        begins_only = bool(reset) and not found
        missing = [name for name in self._spec.entries if name not in found]
        if missing and not begins_only:
            raise Refused(BAD_REQUEST, f"{few(missing)} missing: got {few(message)}")
        pause = step is None and not self._resets and begun - self._answered > PAUSE_SECONDS
        if reset or not self._episodes or prompt != self._prompt or self._window.goes_back(step) or pause:
            await asyncio.wrap_future(self._client.reset(message.get(SEED, self._episodes), prompt))
            self._window.clear()
            self._rate.clear()
            self._prompt, self._episodes, self._resets = prompt, self._episodes + 1, self._resets or bool(reset)
        if begins_only:
            self._answered = time.monotonic()
            return pack({"server_timing": {}})
        history = self._history(found, step, begun)
        plan = await asyncio.wrap_future(self._client.plan(history, message.get(PREFIX), message.get(WEIGHTS)))
        self._answered = time.monotonic()
        self._rate.answered(self._answered)
        timing = {"infer_ms": plan.infer_ms, "wait_ms": plan.wait_ms} | self._previous
        self._previous = {"prev_total_ms": 1e3 * (self._answered - begun)}
        answer = {"actions": plan.actions, "server_timing": timing}
        return pack(answer | ({"server_notes": list(plan.notes)} if plan.notes else {}))

    def _read(self, data: bytes) -> tuple[dict[str, Any], dict[str, tuple[str, Any]]]:
        """A message, and the policy's observations in it -> (the name under which it was sent, its value)."""
        try:
            message = unpack(data, CLEAR * most_bytes(self._core))  # so that too large a frame is answered by its size
            if not isinstance(message, dict) or not all(isinstance(name, str) for name in message):
                raise ValueError("an observation is a map whose keys are texts")
            found, others = observations(message, self._spec.cameras, self._spec.states)
        except ValueError as error:
            raise Refused(BAD_REQUEST, str(error)) from error
        if unknown := [name for name in others if name not in (STEP, RESET, SEED, PREFIX, WEIGHTS)]:
            self._client.note("names", f"this policy does not read {few(unknown)}")
        return message, found

    def _history(self, found: Mapping[str, tuple[str, Any]], step: int | None, now: float) -> dict[str, np.ndarray]:
        """Entry -> (steps, ...), of what the client sent whole or of what it showed by and by."""
        made = {name: self._entry(name, *found[name]) for name in self._spec.entries}
        whole = [name for name, entry in self._spec.entries.items() if made[name].ndim == len(entry.shape) + 1]
        if whole and len(whole) < len(made):
            raise Refused(BAD_REQUEST, f"{', '.join(whole)}: a history, but the others are single observations")
        if whole:
            return made
        steps = self._window.add(made, None if step is None else int(step))
        if said := self._rate.asked(now, steps):
            remedy = f", or serve with --query-steps, which is {steps}, or have it send step" if step is None else ""
            self._client.note("rate", said + remedy)
        return self._window.history()

    def _entry(self, name: str, sent: str, value: Any) -> np.ndarray:
        """One observation or a history of them: frames as trained, states in float64 and of the right width."""
        entry = self._spec.entries[name]
        if entry.kind == "rgb":
            frames = as_trained(sent, value, entry, resize=True)
            if (came := pixels(value)) != entry.shape[:2]:
                sizes = f"{came[1]} x {came[0]} pixels are resized to {entry.shape[1]} x {entry.shape[0]}"
                self._client.note(f"size of {name}", f"{sent}: frames of {sizes}, as trained")
            return frames
        is_array = isinstance(value, np.ndarray | np.number) and value.dtype.kind in "fiu"
        state = np.atleast_1d(value) if is_array else None
        if state is None or state.ndim > 2 or state.shape[-1:] != entry.shape:
            raise bad(sent, kind(value), f"an array of numbers {entry.shape}")
        with np.errstate(invalid="ignore"):  # what is not finite is refused later
            return state.astype(np.float64)


def most_bytes(core: Core) -> int:
    """Of a message: a whole history in the largest frames."""
    sides = [core.spec.entries[name] for name in core.spec.cameras]
    frames = sum(entry.steps * 3 * max(entry.shape[0] * entry.shape[1], LARGEST**2) for entry in sides)
    return frames + 8 * core.description.horizon.history * sum(core.spec.states.values()) + OVERHEAD


@asynccontextmanager
async def listen(
    core: Core,
    address: str,
    port: int,
    limiter: Limiter,
    key: str | None = None,
    queue: bool = False,
    query_steps: int | None = None,
) -> AsyncIterator[tuple[int, Coroutine]]:
    """Listen for openpi's clients; yields the port, and what runs for as long as connections are accepted.

    GET /healthz answers OK to anyone, GET /status the core's health.

    Args:
        port: 0 takes a free one. limiter: of the whole server's connections. key: that clients must give; None: none.
        queue: let clients wait for a slot where all are taken.
        query_steps: see OpenpiHandler; None: the checkpoint's `action_steps`.

    Raises:
        OSError: the port is taken.
    """
    asyncio.get_running_loop().set_exception_handler(limiter.loop_error)
    steps = query_steps or core.description.action_steps
    metadata = pack(
        {"policy": core.description.name, "description": core.description.to_json()}
        | {"query_steps": steps, "episode_after_pause_s": PAUSE_SECONDS}
    )

    def admit(connection: ServerConnection, request: Request) -> Response | None:
        """What is answered over HTTP; None lets the connection in."""
        limiter.spoke_or_ended(connection)
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not has_key(request.headers, key):
            core.refused(f"wrong_key: {_peer(connection)}")
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "send the header Authorization: Api-Key KEY\n")
        if request.path == "/status":
            answer = connection.respond(http.HTTPStatus.OK, json.dumps(core.health(), indent=1))
            del answer.headers["Content-Type"]  # assignment adds one
            answer.headers["Content-Type"] = "application/json"
            return answer
        if len(limiter.open) >= limiter.most + core.max_clients:
            core.refused(f"{BUSY}: {_peer(connection)}")
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        return None

    async def talk(connection: ServerConnection) -> None:
        name, client = f"client {_peer(connection)}", None
        limiter.open.add(connection)
        try:
            wait = {"seconds": math.inf} if queue else {}
            client = await open_soon(core, name, lambda: connection.state is State.OPEN, **wait)
            await connection.send(metadata)
            handler = OpenpiHandler(core, client, steps)
            async for message in connection:
                if isinstance(message, str):
                    raise Refused(BAD_REQUEST, "got a text, expected a binary message")
                answer = asyncio.ensure_future(handler.answer(message))
                gone = asyncio.ensure_future(connection.wait_closed())
                await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
                gone.cancel()
                if not answer.done():
                    answer.cancel()
                    return
                await connection.send(answer.result())
        except Refused as error:
            log.warning("%s: %s", name, error.text)
            core.refused(str(error))
            if client is not None:
                client.close()  # before the closing handshake, which may take seconds
            await _end(connection, error, None if client else metadata)
        except ConnectionClosed as error:
            if error.sent is not None and error.sent.code == TOO_BIG:
                log.warning("%s: closed: %s", name, error.sent.reason)
                core.refused(f"{BAD_REQUEST}: {error.sent.reason}")
        except Exception as error:  # a mistake of ours ends this connection alone
            log.exception("%s: a message could not be handled", name)
            await _end(connection, Refused(POLICY_FAILED, f"the server failed ({type(error).__name__})"))
        finally:
            limiter.open.discard(connection)
            if client is not None:
                client.close()

    quiet = logging.getLogger(f"{__name__}.connections")
    quiet.setLevel(logging.CRITICAL)  # what matters is logged here
    async with serve(
        talk,
        address,
        port,
        compression=None,
        max_size=CLEAR * most_bytes(core),
        max_queue=1,
        origins=[None],  # no page that a browser on this machine shows may talk to the robot
        process_request=admit,
        server_header=None,
        open_timeout=HANDSHAKE_SECONDS,
        close_timeout=CLOSE_SECONDS,
        logger=quiet,
        create_connection=partial(LimitedConnection, limiter=limiter),
    ) as server:
        yield server.sockets[0].getsockname()[1], server.wait_closed()
        limiter.close()


async def _end(connection: ServerConnection, error: Refused, hello: bytes | None = None) -> None:
    """Say why, and close. Without a hello before it, openpi's clients do not understand an error."""
    with suppress(ConnectionClosed):
        if hello is not None:
            await connection.send(hello)
            await connection.recv()
        await connection.send(error.text)
        await connection.close(ERROR, error.code)


def _peer(connection: ServerConnection) -> str:
    return "{}:{}".format(*connection.remote_address)
