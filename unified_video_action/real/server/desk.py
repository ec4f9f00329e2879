"""What the ZeroMQ door answers: msgpack maps, with arrays as openpi writes them.

A request has a `kind` and, where the server has a key and no CURVE, that `key`. The answer is what is shown, or
{"error": text, "code": word} with a code of `errors`.

    {"kind": "describe"}                                             {"description": {...}} of a PolicyDescription
    {"kind": "health"}                                               {"health": {...}}
    {"kind": "reset", "client": id, "name": text,
     "seed": 0, "text": instruction or None}                         {"ok": True}
    {"kind": "plan", "client": id, "observation": {name: array},
     "actions": (n, D) or None, "weights": (n,) or None}             {"actions": (A, D), "timing": {...} in ms}
    {"kind": "close", "client": id}                                  {"ok": True}

The answer to a plan may also have `notes`, a list of texts for the user, such as that a state is outside of the range
of the training data. `client` is any text that is the client's own, so that it keeps its place when its connection
breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from unified_video_action.compat.openpi_messages import pack, unpack
from unified_video_action.messages import shown
from unified_video_action.real.server.core import Core
from unified_video_action.real.server.errors import BAD_REQUEST, NO_EPISODE, POLICY_FAILED, WRONG_KEY, Refused
from unified_video_action.real.server.keys import same
from unified_video_action.real.server.place import Client, Plan

FIELDS = {
    "describe": (),
    "health": (),
    "reset": ("client", "name", "seed", "text"),
    "plan": ("client", "observation", "actions", "weights"),
    "close": ("client",),
}
NAME_CHARACTERS = 80

Reply = Callable[[bytes], None]


class Desk:
    """Reads one request after the other; an answer comes at once, or later from the inference thread.

    Args:
        key: what every request must carry; None: nothing.
        lease: seconds of silence after which a client may lose its place to another.
    """

    def __init__(self, core: Core, key: str | None = None, lease: float = 60.0) -> None:
        self._core, self._key, self._lease = core, key, lease
        self._clients: dict[str, Client] = {}  # by their own ids; no more than have a place

    @property
    def most_bytes(self) -> int:
        return self._core.spec.most_bytes

    def handle(self, identity: bytes, data: bytes | memoryview, reply: Reply) -> None:
        """Call `reply` once, with the answer to a request, now or later. Raises nothing, whatever `data` is."""
        try:
            answer = self._answer(self._read(data))
        except Refused as error:
            reply(self.refuse(error))
            return
        if isinstance(answer, Future):
            answer.add_done_callback(lambda done: reply(self._finish(done)))
        else:
            reply(pack(answer))

    def left(self, identity: bytes) -> None:
        """A client keeps its place: it may come back through another connection."""

    def refuse(self, error: Refused) -> bytes:
        self._core.monitor.refused(str(error))
        return pack({"error": error.text, "code": error.code})

    def _read(self, data: bytes | memoryview) -> Mapping[str, Any]:
        try:
            message = unpack(data, self.most_bytes)
        except ValueError as error:
            raise Refused(BAD_REQUEST, str(error)) from error
        if not isinstance(message, dict):
            raise Refused(BAD_REQUEST, f"a message that is a {type(message).__name__}: expected a map")
        if self._key is not None:
            given = message.pop("key", None)
            if not isinstance(given, str) or not same(given, self._key):
                raise Refused(WRONG_KEY, "this server asks for a key: give the one it was started with")
        return message

    def _answer(self, message: Mapping[str, Any]) -> dict[str, Any] | Future:
        kind = message.get("kind")
        if not isinstance(kind, str) or kind not in FIELDS:
            raise Refused(BAD_REQUEST, f"kind: expected one of {', '.join(FIELDS)}")
        others = [name for name in message if name not in ("kind", "key", *FIELDS[kind])]
        if others:
            raise Refused(BAD_REQUEST, f"{shown(others[0])}: {kind} has only {', '.join(FIELDS[kind]) or 'a kind'}")
        if kind == "describe":
            return {"description": self._core.description.to_json()}
        if kind == "health":
            return {"health": self._core.health()}
        token = _text(message, "client")
        if kind == "reset":
            return self._client(token, message).submit_reset(message.get("seed", 0), message.get("text"))
        client = self._clients.get(token)
        if kind == "close":
            if client is not None:
                client.close()
                del self._clients[token]
            return {"ok": True}
        if client is None or client.closed:
            raise Refused(NO_EPISODE, "the server knows no episode of this client: reset first")
        return client.submit_plan(message.get("observation"), message.get("actions"), message.get("weights"))

    def _client(self, token: str, message: Mapping[str, Any]) -> Client:
        """The client of that id, which gets a place if it has none."""
        self._clients = {known: client for known, client in self._clients.items() if not client.closed}
        if token not in self._clients:
            name = _text(message, "name") if "name" in message else "a ZeroMQ client"
            self._clients[token] = self._core.open(name, self._lease)
        return self._clients[token]

    def _finish(self, done: Future) -> bytes:
        error = done.exception()
        if isinstance(error, Refused):
            return self.refuse(error)
        if error is not None:
            return self.refuse(Refused(POLICY_FAILED, type(error).__name__))
        plan = done.result()
        if not isinstance(plan, Plan):
            return pack({"ok": True})
        answer = {"actions": plan.actions, "timing": {"infer_ms": plan.infer_ms, "wait_ms": plan.wait_ms}}
        return pack(answer | ({"notes": list(plan.notes)} if plan.notes else {}))


def _text(message: Mapping[str, Any], field: str) -> str:
    value = message.get(field)
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= NAME_CHARACTERS:
        raise Refused(BAD_REQUEST, f"{field}: expected a text of 1 to {NAME_CHARACTERS} printable characters")
    return value
