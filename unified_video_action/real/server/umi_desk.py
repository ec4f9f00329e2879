"""What umi-arx's client hears: a pickled array of actions, or a pickled text where there are none.

Its histories have one entry per control step, or just those that the policy reads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from unified_video_action.compat import plain_pickle, umi_arx
from unified_video_action.poses import KINDS
from unified_video_action.real.planner import PolicyDescription
from unified_video_action.real.server.core import Core
from unified_video_action.real.server.errors import BAD_REQUEST, POLICY_FAILED, Refused
from unified_video_action.real.server.frames import as_trained
from unified_video_action.real.server.place import Client
from unified_video_action.real.server.rate import RateWatch
from unified_video_action.real.server.requests import OVERHEAD
from unified_video_action.real.server.window import picked

log = logging.getLogger(__name__)
LEASE = 5.0  # seconds of silence after which another client may have the place: a restarted one is another

Reply = Callable[[bytes], None]


class UmiDesk:
    """Reads one request after the other; an answer comes at once, or later from the inference thread.

    Raises:
        ValueError: the checkpoint does not move a hand.
    """

    def __init__(self, core: Core) -> None:
        require_one_hand(core.description)
        self._core, self._hand = core, core.description.hand
        self._clients: dict[bytes, tuple[Client, str | None, RateWatch]] = {}  # by connection, with the instruction

    @property
    def most_bytes(self) -> int:
        """Of a message: a history of every control step in float64, or in float32 as the oldest protocols write it."""
        spec, (camera,) = self._core.spec, self._core.spec.cameras
        step = 8 * int(np.prod(spec.entries[camera].shape)) + 8 * sum(KINDS.values())
        return self._steps * step + OVERHEAD

    @property
    def _steps(self) -> int:
        """Of a history that ends with the newest observation and has one entry per control step."""
        horizon = self._core.description.horizon
        return horizon.history * horizon.stride

    def client_yaml(self) -> str:
        """The client's configuration."""
        description, (camera,) = self._core.description, self._core.spec.cameras
        return umi_arx.client_yaml(
            description.name,
            description.observations[camera].shape[:2],
            self._hand.states,
            (self._hand.relative_states, self._hand.relative_actions),
            self._steps,
            description.horizon.actions,
            description.step_seconds,
        )

    def handle(self, identity: bytes, data: bytes | memoryview, reply: Reply) -> None:
        """Call `reply` once, with the answer to a request, now or later. Raises nothing, whatever `data` is."""
        try:
            message = self._read(data)
            observation = self._observation(message)
            step = self._step_seconds(message)
            client, rate = self._client(identity, self._instruction(message))
            actions = self._core.description.horizon.actions
            said = rate.asked(time.monotonic(), 1, actions) if step is None else rate.judge(step)
            if said:
                client.note("rate", f"{said} (its option -f)")
            plan = client.submit_plan(observation)
        except Refused as error:
            reply(self.refuse(error))
            return
        plan.add_done_callback(lambda done: (rate.answered(time.monotonic()), reply(self._finish(done))))

    def left(self, identity: bytes) -> None:
        """The client of that connection is gone, and a restarted one is another."""
        if identity in self._clients:
            self._clients.pop(identity)[0].close()

    def refuse(self, error: Refused) -> bytes:
        log.warning("UMI client: %s", error.text)
        self._core.monitor.refused(str(error))
        return plain_pickle.write(error.text)

    def _read(self, data: bytes | memoryview) -> Mapping[str, Any]:
        try:
            message = plain_pickle.read(data, self.most_bytes)
        except ValueError as error:
            raise Refused(BAD_REQUEST, str(error)) from error
        if not isinstance(message, dict):
            raise Refused(BAD_REQUEST, f"a message that is a {type(message).__name__}: expected a dict")
        return message

    def _observation(self, message: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Entry -> (steps, ...)"""
        spec, (camera,) = self._core.spec, self._core.spec.cameras
        try:
            found = umi_arx.observations(message, camera, self._hand.states)
        except ValueError as error:
            raise Refused(BAD_REQUEST, str(error)) from error
        offsets = self._core.description.horizon.history_offsets
        made = {}
        for name, value in found.items():
            entry = spec.entries[name]
            if not isinstance(value, np.ndarray) or not value.ndim or not value.size:
                raise Refused(BAD_REQUEST, f"{name}: got a {type(value).__name__}, expected an array (T, ...)")
            chosen = picked(value, offsets, entry.steps)
            if chosen is None:
                wanted = f"{entry.steps}, or {self._steps} with one for each control step"
                raise Refused(BAD_REQUEST, f"{name}: got {len(value)} steps, expected {wanted}")
            made[name] = as_trained(name, chosen, entry, resize=False) if name == camera else chosen
        return made

    def _instruction(self, message: Mapping[str, Any]) -> str | None:
        if not self._core.description.follows_text:
            return None
        try:
            return umi_arx.instruction(message, self._core.description.instructions)
        except ValueError as error:
            raise Refused(BAD_REQUEST, str(error)) from error

    def _step_seconds(self, message: Mapping[str, Any]) -> float | None:
        """The length of a control step, by the times of the observations where the client sends them."""
        stamps, frames = message.get(umi_arx.TIMESTAMP), message[umi_arx.CAMERA]
        if stamps is None:
            return None
        fits = isinstance(stamps, np.ndarray) and stamps.dtype.kind == "f" and stamps.shape == frames.shape[:1]
        if not fits or len(stamps) < 2 or not (np.diff(stamps) > 0).all():
            raise Refused(
                BAD_REQUEST, f"{umi_arx.TIMESTAMP}: expected the growing times in seconds of {len(frames)} frames"
            )
        horizon = self._core.description.horizon
        return float(np.median(np.diff(stamps))) / (horizon.stride if len(stamps) == horizon.history else 1)

    def _client(self, identity: bytes, text: str | None) -> tuple[Client, RateWatch]:
        """The client of a connection, with an episode for this instruction; the place and the episode are made."""
        self._clients = {known: entry for known, entry in self._clients.items() if not entry[0].closed}
        client, before, rate = self._clients.get(identity, (None, None, None))
        if client is None:
            client, rate = self._core.open("UMI client", LEASE), RateWatch(self._core.description.step_seconds)
        elif client.has_episode and text == before:
            return client, rate
        self._clients[identity] = client, text, rate
        client.reset(0, text)  # soon done: the instruction is encoded, the policy is not asked
        return client, rate

    def _finish(self, done: Future) -> bytes:
        error = done.exception()
        if error is not None:
            return self.refuse(error if isinstance(error, Refused) else Refused(POLICY_FAILED, type(error).__name__))
        return plain_pickle.write(done.result().actions)


def require_one_hand(description: PolicyDescription) -> None:
    """Raises ValueError for a policy that umi-arx's client cannot use."""
    if description.hand is None or [entry.kind for entry in description.observations.values()].count("rgb") != 1:
        raise ValueError(
            f"--allow-umi-pickle: {description.name} does not move one hand with one camera; its configuration has "
            "no task.hand, or more than one rgb observation"
        )
