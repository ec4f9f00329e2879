"""The ZeroMQ door: a ROUTER socket that carries requests to a desk and its answers back, for any number of clients."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

import zmq

from unified_video_action.real.server.errors import BAD_REQUEST, POLICY_FAILED, Refused
from unified_video_action.real.server.inflow import LOOK_SECONDS, Inflow
from unified_video_action.real.server.keys import ServerCurve
from unified_video_action.real.server.listener import cannot_listen

log = logging.getLogger(__name__)
WAITING = 4  # messages of one connection that are kept until they are read
CLEAR = 4  # a message so many times as long as any good one ends its connection; a shorter one gets an answer
FRAMES = 3  # of a good message, with the identity in front
HANDSHAKE_MS = 10_000
LINGER_MS = 200  # for the last answers to leave
STOP_SECONDS = 10.0


class Requests(Protocol):
    """What answers: a Desk or a UmiDesk."""

    most_bytes: int

    def handle(self, identity: bytes, data: bytes | memoryview, reply: Callable[[bytes], None]) -> None:
        """Call `reply` once, from any thread, with the answer to a message on the connection of that name."""

    def refuse(self, error: Refused) -> bytes:
        """The answer to what is no message."""

    def left(self, identity: bytes) -> None:
        """The connection of that name was closed."""


class ZmqDoor:
    """Listens from `start` to `stop`, in one thread.

    Args:
        address: to listen on. port: 0 takes a free one.
        option: that the port comes from, for messages.
        curve: who may connect; None: anyone who can reach the address.

    Raises:
        ValueError: the port is taken.
    """

    def __init__(
        self, requests: Requests, address: str, port: int, option: str, curve: ServerCurve | None = None
    ) -> None:
        self._requests = requests
        self._context = zmq.Context()
        self._guard = curve.guard(self._context) if curve else None
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.maxmsgsize = CLEAR * requests.most_bytes
        self._socket.rcvhwm = self._socket.sndhwm = WAITING
        self._socket.linger = LINGER_MS
        self._socket.heartbeat_ivl, self._socket.heartbeat_timeout = 5000, 15000  # connections of the dead are closed
        self._socket.handshake_ivl = HANDSHAKE_MS
        self._socket.ipv6 = ":" in address
        self._inflow = Inflow(self._socket, (CLEAR + 1) * requests.most_bytes)
        if curve:
            curve.secure(self._socket)
        self._answers: deque[list[bytes]] = deque()
        self._bell, self._button = socket.socketpair()  # rung when there is an answer, or to stop
        self._button.setblocking(False)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="zmq door", daemon=True)
        try:
            self._socket.bind(f"tcp://{f'[{address}]' if ':' in address else address}:{port or '*'}")
        except zmq.ZMQError as error:
            self._close()
            raise ValueError(cannot_listen(address, port, option, error)) from error
        self.port = int(self._socket.last_endpoint.decode().rsplit(":", 1)[1])

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and (self._guard is None or self._guard.is_alive())

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._ring()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        self._close()

    def _close(self) -> None:
        if self._guard:
            self._guard.stop()
        self._socket.disable_monitor()
        self._socket.close()
        self._context.destroy()
        self._bell.close()
        self._button.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._bell, zmq.POLLIN)
        poller.register(self._inflow.events, zmq.POLLIN)
        look = time.monotonic()
        while not self._stopping:
            ready = dict(poller.poll(1e3 * LOOK_SECONDS if self._inflow.watches else None))
            if self._bell.fileno() in ready:
                self._bell.recv(4096)
            for identity in self._inflow.ended():
                self._requests.left(identity)
            if self._socket in ready:
                self._receive(*self._message())
            self._send_answers()
            if time.monotonic() - look > LOOK_SECONDS:
                self._inflow.look()
                look = time.monotonic()
        self._send_answers()

    def _message(self) -> tuple[list[zmq.Frame], int]:
        """The first frames of a message, and how many it has."""
        frames = [self._socket.recv(copy=False)]
        count, newest = 1, frames[0]
        while newest.more:
            newest = self._socket.recv(copy=False)
            count += 1
            if count <= FRAMES:
                frames.append(newest)
        with suppress(zmq.ZMQError):  # a client as old as ZMTP 1, which does not say
            self._inflow.completed(newest.get(zmq.SRCFD), frames[0].bytes)
        return frames, count

    def _receive(self, frames: list[zmq.Frame], count: int) -> None:
        """A REQ socket sends [empty, body], after the identity that ROUTER puts in front."""
        identity = frames[0].bytes
        answer = partial(self._answer, identity)
        if count != FRAMES or len(frames[1]):
            error = Refused(BAD_REQUEST, f"{count - 1} frames: expected an empty one and a message")
            answer(self._requests.refuse(error))
            return
        try:
            self._requests.handle(identity, frames[2].buffer, answer)
        except Exception as error:  # a mistake of ours must not close the door
            log.exception("a message could not be handled")
            answer(self._requests.refuse(Refused(POLICY_FAILED, f"the server failed ({type(error).__name__})")))

    def _answer(self, identity: bytes, body: bytes) -> None:
        """May be called from any thread."""
        self._answers.append([identity, b"", body])
        if threading.current_thread() is not self._thread:
            self._ring()

    def _send_answers(self) -> None:
        while self._answers:
            self._socket.send_multipart(self._answers.popleft())

    def _ring(self) -> None:
        try:
            self._button.send(b"!")
        except OSError:  # it rings already, or nobody is there any more
            log.debug("the bell is not heard")
