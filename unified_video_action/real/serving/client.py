"""Plans from a policy server, over openpi's websocket, and a server of one's own as a child process. Needs no torch.

with RemotePlanner("ws://192.168.1.7:8000", key=KEY) as planner:
    planner.reset(seed=0, text="fold the towel")
    actions = planner.plan({"camera0_rgb": frames, ...})   # (A, D)
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from unified_video_action.compat.openpi_messages import pack, unpack
from unified_video_action.inference.continuation import Continuation
from unified_video_action.messages import shown
from unified_video_action.real.planner import PlannerError, PolicyDescription
from unified_video_action.real.serving.access import SCHEME, VARIABLE

log = logging.getLogger(__name__)
MOST_BYTES = 16 * 1024 * 1024  # of an answer
RESET_SECONDS = 60.0  # for an episode to begin: a new instruction may need an encoder that is yet to be loaded
RETRY_SECONDS = 0.1  # between two tries to connect
SEND_SECONDS = 5.0  # for a network that takes nothing any more
CLOSE_SECONDS = 0.3  # for the server to hear that the planner closes, so that another may have its slot at once
KILL_SECONDS = 45.0  # for a server to end by itself
ANOTHER = "is it the server of another project?"


class RemotePlanner:
    """A slot in a policy server. Any thread may call; calls follow one another.

    Where the connection was lost, or closed by an error, the next call makes another and gives it the episode's seed
    and instruction again; since every request carries its whole history, nothing else is lost.

    Args:
        endpoint: such as ws://127.0.0.1:8000.
        key: the server's key, where it asks for one.
        connect_seconds: for the server to be there, and to have a slot where it lets clients queue.
        plan_seconds: for an answer, but that of `reset`, which has a minute.

    Raises:
        PlannerError: no such server answers in time; by the other methods, too, where there is no plan. Each may be
            tried again.
    """

    def __init__(
        self, endpoint: str, key: str | None = None, connect_seconds: float = 10.0, plan_seconds: float = 5.0
    ) -> None:
        self.endpoint, self.plan_seconds = endpoint, plan_seconds
        self._headers = None if key is None else {"Authorization": SCHEME + key}
        self._episode: dict[str, Any] = {}  # the newest reset
        self._connection: ClientConnection | None = None
        self._knows_episode = False  # the server, through this connection
        self._lock = threading.Lock()
        self._closed = False
        with self._lock:
            self.description = self._connect(connect_seconds)

    def reset(self, seed: int = 0, text: str | None = None) -> None:
        """Start an episode."""
        with self._lock:
            self._episode = {"reset": True, "seed": seed} | ({} if text is None else {"prompt": text})
            self._ask(self._episode, RESET_SECONDS)
            self._knows_episode = True

    def plan(self, observation: Mapping[str, np.ndarray], going_on: Continuation | None = None) -> np.ndarray:
        """Plan from a history.

        Args:
            observation: for every entry of the description (steps, *shape): uint8 frames, float32 states.

        Returns:
            (A, D) float32 in the data's units, the first for `horizon.action_offset` steps after the newest frame.
        """
        request: dict[str, Any] = dict(observation)
        if going_on is not None:
            request |= {"prefix": going_on.actions, "prefix_weights": going_on.weights}
        with self._lock:
            if not self._episode:
                raise PlannerError("plan without an episode: call reset(seed, text) first")
            self._ready()
            reset = {} if self._knows_episode else self._episode
            prompt = {"prompt": self._episode["prompt"]} if "prompt" in self._episode else {}
            answer = self._ask(request | prompt | reset, self.plan_seconds)
            self._knows_episode = True
        actions = answer.get("actions")
        shape = self.description.horizon.actions, self.description.action_dim
        if not isinstance(actions, np.ndarray) or actions.shape != shape or not np.isfinite(actions).all():
            raise PlannerError(f"{self.endpoint}: an answer without {shape[0]} actions of {shape[1]} finite numbers")
        for note in list(answer.get("server_notes", []))[:10]:
            log.warning("%s: %s", self.endpoint, shown(note, 300))
        return actions.astype(np.float32)

    def close(self) -> None:
        """Give the slot back. A call under way in another thread ends with a PlannerError."""
        self._closed = True
        self._drop()

    def __enter__(self) -> RemotePlanner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- with the lock held --------------------------------------------------------------------------------------------

    def _connect(self, seconds: float) -> PolicyDescription:
        end = time.monotonic() + seconds
        while True:
            try:
                connection = connect(
                    self.endpoint,
                    additional_headers=self._headers,
                    compression=None,
                    max_size=MOST_BYTES,
                    proxy=None,
                    open_timeout=max(end - time.monotonic(), 0.01),
                    close_timeout=CLOSE_SECONDS,
                    legacy=True,  # returns the connection
                )
                break
            except InvalidStatus as error:
                why = "the server asks for another key" if error.response.status_code == 401 else str(error)
                raise PlannerError(f"{self.endpoint}: {why}") from error
            except (InvalidURI, ValueError) as error:
                raise PlannerError(f"{self.endpoint}: expected such as ws://HOST:PORT ({error})") from error
            except (OSError, InvalidHandshake, EOFError) as error:  # OSError: nobody listens there yet, or a timeout
                if self._closed or time.monotonic() + RETRY_SECONDS > end:
                    text = f"{self.endpoint}: no answer within {seconds:g} s; is the server running ({error})?"
                    raise PlannerError(text) from error
                time.sleep(RETRY_SECONDS)
        limit = struct.pack("ll", int(SEND_SECONDS), 0)  # a send that waits for ever would hold every other call up
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._connection, self._knows_episode = connection, False
        hello = self._receive(connection, max(end - time.monotonic(), 0.01))
        try:
            return PolicyDescription.from_json(hello.get("description"))
        except ValueError as error:
            self._drop()
            raise PlannerError(f"{self.endpoint}: {error}") from error

    def _ready(self) -> ClientConnection:
        """The connection or, where it was lost, another one to a server of the same policy."""
        connection = self._connection
        if connection is not None and connection.state is State.OPEN:
            return connection
        if self._closed:
            raise PlannerError(f"{self.endpoint}: the planner was closed")
        log.warning("%s: connecting again", self.endpoint)
        if self._connect(self.plan_seconds) != self.description:
            self._drop()
            raise PlannerError(f"{self.endpoint}: the server was restarted with another policy; start the robot again")
        return self._connection

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and wait for its answer. After a failure the next one goes through a new connection."""
        connection = self._ready()
        try:
            connection.send(pack(request))
        except (ConnectionClosed, OSError) as error:
            self._drop()
            raise PlannerError(f"{self.endpoint}: the server is gone ({shown(error, 200)})") from error
        return self._receive(connection, seconds)

    def _receive(self, connection: ClientConnection, seconds: float) -> dict[str, Any]:
        """One answer. Raises PlannerError, and drops the connection."""
        code = None
        try:
            answer = connection.recv(timeout=seconds)
            if isinstance(answer, bytes):
                message = unpack(answer, MOST_BYTES)
                if isinstance(message, dict):
                    return message
                why = f"an answer that is not a map; {ANOTHER}"
            else:
                why, code = shown(answer, 1000), _code(connection)
        except TimeoutError:
            why = f"no answer within {seconds:g} s"
        except ConnectionClosed as error:
            why = "the planner was closed" if self._closed else f"the server closed the connection ({error})"
        except OSError as error:
            why = f"the server is gone ({shown(error, 200)})"
        except ValueError as error:
            why = f"{error}; {ANOTHER}"
        self._drop()
        raise PlannerError(f"{self.endpoint}: {why}", code)

    def _drop(self) -> None:
        if (connection := self._connection) is not None:
            self._connection = None
            connection.close()


def _code(connection: ClientConnection) -> str | None:
    """The code word with which the server closes the connection after the text of an error."""
    try:
        connection.recv(timeout=CLOSE_SECONDS)
    except ConnectionClosed as closed:
        return closed.rcvd.reason if closed.rcvd else None
    except TimeoutError:
        pass
    return None


def start_server_process(
    checkpoint: str | Path, options: Sequence[str] = (), seconds: float = 180.0
) -> tuple[subprocess.Popen, str]:
    """Serve a checkpoint on this machine alone, in a child process that ends with this one.

    Args:
        checkpoint: its folder.
        options: further ones of `eval_real.py serve`, such as ("--sampler", "ddim16").
        seconds: for it to load the checkpoint and listen.

    Returns:
        the process, for `stop_server_process`, and the endpoint for a `RemotePlanner`.

    Raises:
        PlannerError: it does not get that far.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "unified_video_action.real.serving.server", "--checkpoint", str(checkpoint)]
        command += ["--host", "127.0.0.1", "--port", "0", "--ready-file", str(ready), "--with-parent"]
        # In a session of its own, so that Ctrl-C does not end it before the robot holds; a key is for others' servers.
        process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != VARIABLE},
        )
        end = time.monotonic() + seconds
        try:
            while not ready.exists():
                if (status := process.poll()) is not None:
                    raise PlannerError(f"the server of {checkpoint} ended with status {status}; its log says why")
                if time.monotonic() > end:
                    raise PlannerError(f"the server of {checkpoint} was not ready within {seconds:g} s")
                time.sleep(RETRY_SECONDS)
            port = json.loads(ready.read_text())["ports"]["websocket"]
        except BaseException:
            stop_server_process(process)
            raise
    return process, f"ws://127.0.0.1:{port}"


def stop_server_process(process: subprocess.Popen) -> None:
    """End what `start_server_process` started."""
    process.terminate()
    try:
        process.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("the server does not end by itself: killed")
        process.kill()
        process.wait()
    process.stdin.close()
