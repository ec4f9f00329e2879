"""What one of openpi's clients hears: a plan for every observation that it sends.

Such a client sends one observation at a time, of which the desk makes histories. Any observation of the checkpoint may
go by its own name, with or without `observation/` before it; `observation/image` is the first camera,
`observation/wrist_image` the second, `observation/state` all states side by side in the checkpoint's order, `prompt`
the instruction. Frames of another size but the same proportions are resized to that of the training data; the first
answer says so in `server_notes`, as it does of other things that the user should know. A client may
also send `step`, the control step of its observation, and `reset`; and whole histories (T, ...) in place of single
observations.

The protocol does not say when an episode begins. It does where the client says `reset`, where `step` goes back, where
the prompt is another one, and after a pause.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from unified_video_action.compat.openpi_messages import PROMPT, observations, pack, sent_as, unpack
from unified_video_action.messages import few
from unified_video_action.real.planner import ObservationEntry
from unified_video_action.real.server.core import Core
from unified_video_action.real.server.errors import BAD_REQUEST, Refused
from unified_video_action.real.server.frames import LARGEST, as_trained, pixels
from unified_video_action.real.server.place import Client
from unified_video_action.real.server.rate import RateWatch
from unified_video_action.real.server.requests import OVERHEAD
from unified_video_action.real.server.window import Window

STEP, RESET = "step", "reset"
PAUSE_SECONDS = 5.0  # between an answer and the next observation, after which that begins an episode
STEPS = 2**31
CLEAR = 4  # a message so many times as long as any good one ends its connection; a shorter one is answered


class OpenpiDesk:
    """One connection's requests, one after the other.

    Args:
        query_steps: control steps between two observations of a client that does not count them.
    """

    def __init__(self, core: Core, client: Client, query_steps: int) -> None:
        self._core, self._client = core, client
        self._spec = core.spec
        self._window = Window(core.description.horizon, core.spec.entries, query_steps)
        self._names: dict[str, str] = {}  # of the observations as they were sent
        self._prompt: str | None = None
        self._episodes = 0
        self._answered = time.monotonic()  # the newest message
        self._previous_ms: float | None = None
        self._rate = RateWatch(core.description.step_seconds)

    def answer(self, data: bytes) -> bytes:
        """The answer to a message. Raises Refused."""
        begun = time.monotonic()
        message = self._read(data)
        prompt, step, reset = self._said(message)
        found, unknown = self._found(message)
        if unknown:
            self._client.note("names", f"this policy does not read {few(unknown)}")
        if reset or self._begins(prompt, step):
            self._client.reset(self._episodes, prompt)
            self._window.clear()
            self._rate.clear()
            self._prompt, self._episodes = prompt, self._episodes + 1
        plan = self._client.plan(self._history(found, step, begun))
        self._answered = time.monotonic()
        self._rate.answered(self._answered)
        timing = {"infer_ms": plan.infer_ms, "wait_ms": plan.wait_ms}
        if self._previous_ms is not None:
            timing["prev_total_ms"] = self._previous_ms
        self._previous_ms = 1e3 * (self._answered - begun)
        answer = {"actions": plan.actions, "server_timing": timing}
        return pack(answer | ({"server_notes": list(plan.notes)} if plan.notes else {}))

    def _read(self, data: bytes) -> dict[str, Any]:
        try:
            message = unpack(data, CLEAR * most_bytes(self._core))  # so that too large a frame is told its size
        except ValueError as error:
            raise Refused(BAD_REQUEST, str(error)) from error
        if not isinstance(message, dict) or not all(isinstance(name, str) for name in message):
            raise Refused(BAD_REQUEST, "an observation is a map whose keys are texts")
        return message

    def _said(self, message: Mapping[str, Any]) -> tuple[str | None, int | None, bool]:
        """Prompt, where the policy follows one, step and reset."""
        follows = self._core.description.follows_text
        step, reset = message.get(STEP), message.get(RESET, False)
        if step is not None and not (isinstance(step, int | np.integer) and 0 <= step < STEPS):
            raise Refused(BAD_REQUEST, f"{STEP}: expected a whole number, of control steps since the episode began")
        if not isinstance(reset, bool | np.bool_):
            raise Refused(BAD_REQUEST, f"{RESET}: got a {type(reset).__name__}, expected true or false")
        prompt = self._spec.text(message.get(PROMPT)) if follows else None
        return prompt, None if step is None else int(step), bool(reset)

    def _found(self, message: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        try:
            found, unknown = observations(message, self._spec.cameras, self._spec.states)
            self._names = {name: sent_as(message, name, self._spec.cameras) for name in found}
        except ValueError as error:
            raise Refused(BAD_REQUEST, str(error)) from error
        missing = [name for name in self._spec.entries if name not in found]
        if missing:
            raise Refused(BAD_REQUEST, f"{few(missing)} missing: got {few(message)}")
        return found, [name for name in unknown if name not in (STEP, RESET)]

    def _begins(self, prompt: str | None, step: int | None) -> bool:
        """Whether a message begins an episode, though it does not say so."""
        if not self._episodes or prompt != self._prompt or self._window.goes_back(step):
            return True
        return step is None and time.monotonic() - self._answered > PAUSE_SECONDS

    def _history(self, found: Mapping[str, Any], step: int | None, now: float) -> dict[str, np.ndarray]:
        """Entry -> (steps, ...), of what the client sent whole or of what it showed by and by."""
        made = {name: self._entry(name, found[name], entry) for name, entry in self._spec.entries.items()}
        whole = {name for name, entry in self._spec.entries.items() if made[name].ndim == len(entry.shape) + 1}
        if whole and len(whole) < len(made):
            raise Refused(BAD_REQUEST, f"{', '.join(sorted(whole))}: a history, but the others are single observations")
        if whole:
            return made
        steps = self._window.add(made, step)
        if steps and (said := self._rate.asked(now, steps, steps)):
            remedy = (
                "" if step is not None else f", or serve with --query-steps, which is {steps}, or have it send step"
            )
            self._client.note("rate", said + remedy)
        return self._window.history()

    def _entry(self, name: str, value: Any, entry: ObservationEntry) -> np.ndarray:
        """One observation or a history of them: frames as trained, states in float32 and of the right width."""
        sent = self._names[name]
        if entry.kind == "rgb":
            frames = as_trained(sent, value, entry, resize=True)
            if (came := pixels(value)) != entry.shape[:2]:
                into = f"{entry.shape[1]} x {entry.shape[0]}"
                self._client.note(
                    f"size of {name}",
                    f"{sent}: frames of {came[1]} x {came[0]} pixels are resized to {into}, as trained",
                )
            return frames
        if not isinstance(value, np.ndarray | np.number) or value.dtype.kind not in "fiu":
            raise Refused(
                BAD_REQUEST, f"{sent}: got a {type(value).__name__}, expected an array of numbers {entry.shape}"
            )
        value = np.atleast_1d(value)
        if value.ndim > 2 or value.shape[-1:] != entry.shape:
            raise Refused(BAD_REQUEST, f"{sent}: got {value.shape}, expected {entry.shape}")
        with np.errstate(invalid="ignore"):  # what is not finite is refused later
            return value.astype(np.float64)


def metadata(core: Core, query_steps: int) -> bytes:
    """What a client hears first."""
    return pack(
        {
            "policy": core.description.name,
            "description": core.description.to_json(),
            "query_steps": query_steps,
            "episode_after_pause_s": PAUSE_SECONDS,
        }
    )


def most_bytes(core: Core) -> int:
    """Of a message: a whole history in the largest frames."""
    sides = [core.spec.entries[name] for name in core.spec.cameras]
    frames = sum(entry.steps * 3 * max(entry.shape[0] * entry.shape[1], LARGEST**2) for entry in sides)
    return frames + 8 * core.description.horizon.history * sum(core.spec.states.values()) + OVERHEAD
