"""A client's place in the server, and what it asks for there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_video_action.real.server.errors import BAD_REQUEST, NO_EPISODE, Refused

if TYPE_CHECKING:
    from unified_video_action.real.server.core import Core

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One answer."""

    actions: np.ndarray  # (A, D) float32
    infer_ms: float  # encoding and planning
    wait_ms: float  # before them, for other clients
    notes: tuple[str, ...] = ()  # what the client's user should know; each is said once


@dataclass
class Job:
    work: Callable[[], Any]
    asked: float
    future: Future


class Client:
    """One client's place in the server; made by `Core.open`. A new request of a client replaces its waiting one."""

    def __init__(self, core: Core, name: str, slot: int, lease: float | None) -> None:
        self.name, self.slot = name, slot
        self.since = self.used = time.monotonic()
        self.plans = 0
        self.closed = False
        self.has_episode = False
        self.job: Job | None = None  # waiting for its turn
        self.served = False  # whether one of its jobs is being done
        self._core, self._lease = core, lease
        self._noted: set[str] = set()
        self._notes: list[str] = []

    def submit_reset(self, seed: Any = 0, text: Any = None) -> Future:
        """Start an episode; the result is None. See `reset`."""
        spec = self._core.spec
        seed, text = spec.seed(seed), spec.text(text)
        if text is None:
            text = self._core.instruction
        if spec.description.follows_text and text is None:
            raise Refused(BAD_REQUEST, "text: this policy follows instructions; send one, or serve with --task TEXT")
        return self._core.submit(self, lambda _: self._core.begin(self, seed, text))

    def submit_plan(self, observation: Any, actions: Any = None, weights: Any = None) -> Future:
        """Plan; the result is a `Plan`. See `plan`."""
        spec = self._core.spec
        checked = spec.observation(observation)
        going_on = spec.continuation(actions, weights)
        for name, text in spec.unusual(checked).items():
            self.note(f"range of {name}", text)
        if not self.has_episode:
            raise Refused(NO_EPISODE, f"{self.name} has no episode here: reset first")
        return self._core.submit(self, lambda asked: self._core.plan(self, checked, going_on, asked))

    def note(self, about: str, text: str) -> None:
        """Say something to the log and, with the next plan, to the client; once about each thing."""
        if about not in self._noted:
            self._noted.add(about)
            self._notes.append(text)
            log.warning("%s: %s", self.name, text)

    def take_notes(self) -> tuple[str, ...]:
        """What was not said to the client yet."""
        notes, self._notes = tuple(self._notes), []
        return notes

    def reset(self, seed: Any = 0, text: Any = None) -> None:
        """Start an episode.

        Args:
            seed: of the episode's noise. text: the instruction; None: the server's own.

        Raises:
            Refused: a bad argument, or an instruction that the policy cannot encode.
        """
        self.submit_reset(seed, text).result()

    def plan(self, observation: Any, actions: Any = None, weights: Any = None) -> Plan:
        """Plan from a whole history.

        Args:
            observation: entry of the description -> (steps, *shape).
            actions, weights: a `Continuation`'s, or None.

        Raises:
            Refused: a bad argument, no episode, or a policy that failed.
        """
        return self.submit_plan(observation, actions, weights).result()

    def close(self) -> None:
        self._core.leave(self)

    def lapsed(self, now: float) -> bool:
        """Whether another client may have its place: nothing was heard from it for as long as its lease."""
        return self._lease is not None and not (self.job or self.served) and now - self.used > self._lease
