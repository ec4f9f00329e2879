"""Plans from a policy server over ZeroMQ, and a server of one's own as a child process. Needs no torch.

with RemotePlanner("tcp://192.168.1.7:8766", keys=Path("keys/robot")) as planner:
    planner.reset(seed=0, text="fold the towel")
    actions = planner.plan({"camera0_rgb": frames, ...})   # (A, D)
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from unified_video_action.compat.openpi_messages import pack, unpack
from unified_video_action.inference.continuation import Continuation
from unified_video_action.messages import shown
from unified_video_action.real.planner import Planner, PlannerError, PolicyDescription
from unified_video_action.real.server.errors import BUSY, NO_EPISODE, POLICY_FAILED
from unified_video_action.real.server.keys import VARIABLE, ClientCurve

log = logging.getLogger(__name__)
MOST_BYTES = 16 * 1024 * 1024  # of an answer
SLICE_SECONDS = 0.05  # how soon a call notices that the planner was closed
RESET_SECONDS = 60.0  # for an episode to begin: a new instruction may need an encoder that is yet to be loaded
RETRY_SECONDS = 0.5  # between two questions whether there is a place
GOODBYE_SECONDS = 0.3  # for the server to hear that the planner closes, so that another may have its place at once
MOST_NOTES = 10  # of an answer that are logged
KILL_SECONDS = 45.0  # for a server to end by itself


class Lost(PlannerError):
    """No answer in time."""


class Answered(PlannerError):
    """The server answered with an error of this code."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(text)


class RemotePlanner(Planner):
    """A place in a policy server. Any thread may call; calls follow one another.

    A server that was restarted, or that gave the place away, is given the episode's seed and instruction again by the
    next `plan`; since every request carries its whole history, nothing else is lost. A planner that got no answer can
    be asked again at once.

    Args:
        endpoint: such as tcp://127.0.0.1:8766.
        name: that the server shows for this client.
        key: the server's key, where it asks for one without CURVE (on the same machine).
        keys: folder with this machine's CURVE keys, as `eval_real.py serve --make-keys` writes them.
        connect_seconds: for the server to be there when the planner is made.
        plan_seconds: for an answer, but that of `reset`, which has a minute.
        queue_seconds: for a place, when others have them all.

    Raises:
        PlannerError: there is no server of ours in time.
        ValueError: keys that are not there.
    """

    def __init__(
        self,
        endpoint: str,
        name: str = "robot",
        key: str | None = None,
        keys: Path | None = None,
        connect_seconds: float = 10.0,
        plan_seconds: float = 5.0,
        queue_seconds: float = 0.0,
    ) -> None:
        self.endpoint, self.plan_seconds, self.queue_seconds = endpoint, plan_seconds, queue_seconds
        self.timing: dict[str, float] = {}  # of the newest plan, in ms: infer_ms, wait_ms and round_trip_ms
        self._name, self._key, self._id = name, key, uuid.uuid4().hex
        self._curve = ClientCurve(Path(keys)) if keys is not None else None
        self._episode: dict[str, Any] | None = None  # what `reset` was asked for
        self._context = zmq.Context()
        self._socket: zmq.Socket | None = None
        self._lock = threading.Lock()
        self._closed = False
        try:
            self.description = self._describe(connect_seconds)
        except BaseException:
            self.close()
            raise

    def reset(self, seed: int = 0, text: str | None = None) -> None:
        with self._lock:
            self._episode = {"kind": "reset", "client": self._id, "name": self._name, "seed": seed, "text": text}
            self._begin(RESET_SECONDS)

    def plan(self, observation: Mapping[str, np.ndarray], going_on: Continuation | None = None) -> np.ndarray:
        request: dict[str, Any] = {"kind": "plan", "client": self._id, "observation": dict(observation)}
        if going_on is not None:
            request |= {"actions": going_on.actions, "weights": going_on.weights}
        begun = time.monotonic()
        with self._lock:
            if self._episode is None:
                raise PlannerError("plan without an episode: call reset(seed, text) first")
            try:
                answer = self._ask(request, self.plan_seconds)
            except Answered as error:
                if error.code != NO_EPISODE:
                    raise
                self._again()
                answer = self._ask(request, self.plan_seconds)
        actions = answer.get("actions")
        shape = self.description.horizon.actions, self.description.action_dim
        if not isinstance(actions, np.ndarray) or actions.shape != shape or not np.isfinite(actions).all():
            text = f"{self.endpoint}: an answer without {shape[0]} actions of {shape[1]} finite numbers"
            raise Answered(POLICY_FAILED, text)
        for note in list(answer.get("notes", []))[:MOST_NOTES]:
            log.warning("%s: %s", self.endpoint, shown(note, 300))
        self.timing = {**answer.get("timing", {}), "round_trip_ms": 1e3 * (time.monotonic() - begun)}
        return actions.astype(np.float32)

    def health(self) -> dict[str, Any]:
        """How the server does. Raises PlannerError."""
        with self._lock:
            return self._ask({"kind": "health"}, self.plan_seconds)["health"]

    def close(self) -> None:
        """Give the place back. A call under way in another thread ends with a PlannerError."""
        if self._closed:
            return
        self._closed = True
        with self._lock:
            if self._episode is not None:
                self._drop()  # a socket that waits for an answer could not send
                self._send({"kind": "close", "client": self._id})
                self._socket.linger = int(1e3 * GOODBYE_SECONDS)
                self._socket.poll(1e3 * GOODBYE_SECONDS)
            self._drop()
            self._context.term()

    def __enter__(self) -> RemotePlanner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- with the lock held --------------------------------------------------------------------------------------------

    def _describe(self, seconds: float) -> PolicyDescription:
        with self._lock:
            data = self._ask({"kind": "describe"}, seconds).get("description")
        if not isinstance(data, Mapping):
            raise PlannerError(
                f"{self.endpoint}: an answer without a description; is it the server of another project?"
            )
        try:
            return PolicyDescription.from_json(data)
        except ValueError as error:
            raise PlannerError(f"{self.endpoint}: {error}") from error

    def _begin(self, seconds: float) -> None:
        """Have the server start the episode, in the queue for a place if need be."""
        end = time.monotonic() + self.queue_seconds
        while True:
            try:
                self._ask(self._episode, seconds)
                return
            except Answered as error:
                if error.code != BUSY or time.monotonic() > end:
                    raise
                log.info("%s; waiting for a place", error)
            time.sleep(RETRY_SECONDS)

    def _again(self) -> None:
        """Start the episode anew in a server that does not know it, which must serve the same policy."""
        data = self._ask({"kind": "describe"}, self.plan_seconds).get("description")
        if not isinstance(data, Mapping) or PolicyDescription.from_json(data) != self.description:
            raise PlannerError(f"{self.endpoint}: the server was restarted with another policy; start the robot anew")
        log.warning("%s does not know this episode (any more): starting it there again", self.endpoint)
        self._begin(self.plan_seconds)

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and wait for its answer. After a failure the next one goes through a new connection."""
        try:
            self._send(request)
            end = time.monotonic() + seconds
            while not self._socket.poll(1e3 * max(0.0, min(SLICE_SECONDS, end - time.monotonic()))):
                if self._closed:
                    raise PlannerError("the planner was closed")
                if time.monotonic() >= end:
                    raise Lost(
                        f"{self.endpoint}: no answer within {seconds:g} s; is the server running, and this key its?"
                    )
            answer = unpack(self._socket.recv(), MOST_BYTES)
        except (zmq.ZMQError, ValueError) as error:
            self._drop()
            raise PlannerError(f"{self.endpoint}: {error}") from error
        except PlannerError:
            self._drop()
            raise
        if not isinstance(answer, dict):
            raise PlannerError(f"{self.endpoint}: an answer that is no map; is it the server of another project?")
        if "error" in answer:
            raise Answered(str(answer.get("code")), f"{self.endpoint}: {answer['error']}")
        return answer

    def _send(self, request: Mapping[str, Any]) -> None:
        if self._socket is None:
            self._socket = self._context.socket(zmq.REQ)
            self._socket.linger = 0
            self._socket.maxmsgsize = MOST_BYTES
            self._socket.reconnect_ivl, self._socket.reconnect_ivl_max = 50, 1000  # ms
            self._socket.ipv6 = "[" in self.endpoint
            if self._curve:
                self._curve.secure(self._socket)
            self._socket.connect(self.endpoint)
        self._socket.send(pack(dict(request) | ({} if self._key is None else {"key": self._key})))

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


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
        command = [sys.executable, "-m", "unified_video_action.real.server", "--checkpoint", str(checkpoint)]
        command += ["--host", "127.0.0.1", "--no-websocket", "--zmq-port", "0", "--ready-file", str(ready)]
        # In a session of its own, so that Ctrl-C does not end it before the robot holds; a key is for others' servers.
        process = subprocess.Popen(
            [*command, "--with-parent", *options],
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
                time.sleep(SLICE_SECONDS)
            port = json.loads(ready.read_text())["ports"]["zmq"]
        except BaseException:
            stop_server_process(process)
            raise
    return process, f"tcp://127.0.0.1:{port}"


def stop_server_process(process: subprocess.Popen) -> None:
    """End what `start_server_process` started."""
    process.terminate()
    try:
        process.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("the server does not end by itself: killed")
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()
