"""Answers umi-arx's client: a pickled array of actions, or a pickled text where there are none.

Its histories have one entry per control step, or just those that the policy reads. They carry no times, but those of
two requests overlap: how far the newest frame of one has moved in the next tells how many steps lie between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from unified_video_action.compat import plain_pickle, umi_arx
from unified_video_action.poses import KINDS
from unified_video_action.real.planner import PolicyDescription
from unified_video_action.real.serving.core import Client, Core, open_soon
from unified_video_action.real.serving.histories import as_trained, picked
from unified_video_action.real.serving.rate import RateWatch
from unified_video_action.real.serving.requests import BAD_REQUEST, OVERHEAD, POLICY_FAILED, Refused, bad, kind

log = logging.getLogger(__name__)
GRACE_SECONDS = 2.0  # for the plan to end that a client asked for before it was restarted
SPARSE = 8  # every so many pixels of a frame are compared with another's


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
            return self._refuse(error)
        except Exception as error:  # a mistake of ours must not end the connection
            log.exception("a message could not be handled")
            return self._refuse(Refused(POLICY_FAILED, f"the server failed ({type(error).__name__})"))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def refuse(self, text: str) -> bytes:
        return self._refuse(Refused(BAD_REQUEST, text))

    def _refuse(self, error: Refused) -> bytes:
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
