"""The server's heart: one policy, one thread that plans with it, and the clients it plans for."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np

from unified_video_action.inference.continuation import Continuation
from unified_video_action.messages import few, shown
from unified_video_action.real.planner import moving_average
from unified_video_action.real.server.errors import (
    BAD_REQUEST,
    BUSY,
    NO_EPISODE,
    POLICY_FAILED,
    STOPPING,
    SUPERSEDED,
    Refused,
)
from unified_video_action.real.server.health import Health
from unified_video_action.real.server.place import Client, Job, Plan
from unified_video_action.real.server.requests import RequestSpec

log = logging.getLogger(__name__)
REPORT_SECONDS = 60.0
STOP_SECONDS = 30.0  # for the plan that is being made to be finished


class Session(Protocol):
    """What the core needs of a PolicySession."""

    def reset(self, slot: int = 0, seed: int = 0, text: str | None = None) -> None: ...

    def recall(self, history: list[dict[str, np.ndarray]], slot: int = 0) -> None: ...

    def plan(self, slots: list[int], going_on: Mapping[int, Continuation] | None = None) -> np.ndarray: ...


class Core:
    """Plans for up to `max_clients` at a time, in a thread of its own; the only one that touches the session.

    Args:
        session: with `max_clients` slots.
        smooth: actions are averaged over three steps, as the published robots' server does.
        instruction: of episodes whose client sends none.
    """

    def __init__(
        self,
        session: Session,
        spec: RequestSpec,
        max_clients: int = 1,
        smooth: bool = False,
        instruction: str | None = None,
    ) -> None:
        if max_clients < 1:
            raise ValueError(f"max_clients={max_clients}: expected at least 1")
        self.spec, self.description, self.max_clients = spec, spec.description, max_clients
        self.smooth = smooth
        self.instruction = spec.text(instruction)
        self.monitor = Health()
        self._session = session
        self._clients: list[Client] = []
        self._ready: deque[Client] = deque()  # those with a job, in turn
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def __enter__(self) -> Core:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer those who wait that the server stops; let the plan in the making be finished."""
        with self._changed:
            self._stopping = True
            waiting = [client.job for client in self._ready if client.job]
            self._ready.clear()
            self._changed.notify_all()
        for job in waiting:
            job.future.set_exception(Refused(STOPPING, "the server is stopping"))
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        if (stuck := self._running) is not None and not stuck.future.done():
            stuck.future.set_exception(Refused(STOPPING, "the server is stopping"))

    @property
    def alive(self) -> bool:
        """Whether the inference thread runs."""
        return self._thread.is_alive()

    # -- clients -------------------------------------------------------------------------------------------------------

    def open(self, name: str, lease: float | None = None, wait: Callable[[], bool] | None = None) -> Client:
        """A place for a client.

        Args:
            lease: seconds of silence after which another client may have the place; None: it is kept until closed.
            wait: queue for a place for as long as this says so, asked twice a second; None: do not queue.

        Raises:
            Refused: there is no place; the text names who is connected.
        """
        with self._changed:
            while True:
                if self._stopping:
                    raise Refused(STOPPING, "the server is stopping")
                if client := self._place(name, lease):
                    log.info("%s connected (%d of %d)", name, len(self._clients), self.max_clients)
                    return client
                if wait is None or not wait():
                    raise Refused(BUSY, self._who())
                self._changed.wait(0.5)

    def leave(self, client: Client) -> None:
        with self._changed:
            if client.closed:
                return
            self._remove(client)
            self._changed.notify_all()
        log.info("%s left after %d plans", client.name, client.plans)

    def _place(self, name: str, lease: float | None) -> Client | None:
        now = time.monotonic()
        if len(self._clients) == self.max_clients:
            for old in [client for client in self._clients if client.lapsed(now)][:1]:
                log.warning("%s was silent for %.0f s; its place goes to %s", old.name, now - old.used, name)
                self._remove(old)
        if len(self._clients) == self.max_clients:
            return None
        slot = min(set(range(self.max_clients)) - {client.slot for client in self._clients})
        client = Client(self, name, slot, lease)
        self._clients.append(client)
        return client

    def _remove(self, client: Client) -> None:
        client.closed = True
        self._clients.remove(client)
        if client.job:
            self._ready.remove(client)
            client.job.future.set_exception(Refused(NO_EPISODE, f"{client.name} has left"))
            client.job = None

    def _who(self) -> str:
        now = time.monotonic()
        who = few([f"{each.name} (for {now - each.since:.0f} s)" for each in self._clients])
        return f"{len(self._clients)} of {self.max_clients} clients are connected: {who}; see --max-clients and --queue"

    # -- work ----------------------------------------------------------------------------------------------------------

    def submit(self, client: Client, work: Callable[[float], Any]) -> Future:
        """Have `work(time at which it was asked for)` done in the inference thread, in the client's turn."""
        now = time.monotonic()
        job = Job(lambda: work(now), now, Future())
        with self._changed:
            if self._stopping:
                raise Refused(STOPPING, "the server is stopping")
            if client.closed:
                raise Refused(NO_EPISODE, f"{client.name} was disconnected: reset first")
            old, client.job, client.used = client.job, job, now
            if old is None:
                self._ready.append(client)
            self._changed.notify_all()
        if old is not None:
            old.future.set_exception(Refused(SUPERSEDED, f"{client.name} asked again before this was begun"))
        return job.future

    def begin(self, client: Client, seed: int, text: str | None) -> None:
        """Start an episode (inference thread)."""
        client.has_episode = False
        try:
            self._session.reset(client.slot, seed, text)
        except (ValueError, FileNotFoundError) as error:
            log.warning("%s: %s", shown(text), shown(error, 300))
            known = few(self.description.instructions, separator="; ")
            what = f"text: {shown(text)!r} cannot be encoded on the server; instructions that it knows: {known}"
            raise Refused(BAD_REQUEST, what) from error
        client.has_episode = True

    def plan(
        self, client: Client, observation: Mapping[str, np.ndarray], going_on: Continuation | None, asked: float
    ) -> Plan:
        """Plan (inference thread)."""
        if not client.has_episode:
            raise Refused(NO_EPISODE, f"{client.name} has no episode here: reset first")
        begun = time.monotonic()
        with self.monitor.planning():
            self._session.recall(histories(observation, self.description.horizon.history), client.slot)
            kept = None if going_on is None else {client.slot: going_on}
            actions = self._session.plan([client.slot], kept)[0]  # (A, D)
        infer_ms = 1e3 * (time.monotonic() - begun)
        if not np.isfinite(actions).all():
            raise Refused(POLICY_FAILED, "the policy's plan holds numbers that are not finite")
        client.plans += 1
        client.used = time.monotonic()
        self.monitor.planned(infer_ms)
        smoothed = moving_average(actions) if self.smooth else actions
        return Plan(smoothed, infer_ms, 1e3 * (begun - asked), client.take_notes())

    def _run(self) -> None:
        report = time.monotonic() + REPORT_SECONDS
        while True:
            with self._changed:
                while not self._ready and not self._stopping and time.monotonic() < report:
                    self._changed.wait(report - time.monotonic())
                if self._stopping:
                    return
                client = self._ready.popleft() if self._ready else None
                job = client.job if client else None
                if client:
                    client.job, client.served = None, True
            if job:
                self._running = job
                self._do(job, client)
                self._running, client.served = None, False
            if time.monotonic() >= report:
                log.info("%s", self.monitor.line(len(self._clients), self.max_clients))
                report = time.monotonic() + REPORT_SECONDS

    def _do(self, job: Job, client: Client) -> None:
        result = refused = None
        try:
            result = job.work()
        except Refused as error:
            refused = error
            if error.code == POLICY_FAILED:
                self.monitor.failed(error.text)
                log.error("%s: %s", client.name, error.text)
        except Exception as error:  # whatever a policy does, the server goes on
            log.exception("the policy failed for %s", client.name)
            what = shown(f"{type(error).__name__}: {error}".splitlines()[0], 200)
            self.monitor.failed(what)
            refused = Refused(POLICY_FAILED, f"the policy failed ({what}); the server's log says more")
        if job.future.done():  # the server was stopped meanwhile, and waited long enough
            return
        if refused is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(refused)

    # -- seen from outside ---------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """How the server does, as JSON-like data."""
        now = time.monotonic()
        with self._changed:
            clients = [
                {"name": each.name, "connected_s": now - each.since, "silent_s": now - each.used, "plans": each.plans}
                for each in self._clients
            ]
            queue = len(self._ready)
        alive = self.alive and not self._stopping
        facts = {"status": "ok" if alive else "stopping", "policy": self.description.name, "queue": queue}
        return facts | {"clients": clients, "max_clients": self.max_clients} | self.monitor.facts()


def histories(observation: Mapping[str, np.ndarray], frames: int) -> list[dict[str, np.ndarray]]:
    """Entry -> (steps, ...) becomes one observation per frame of the history, oldest first; where an entry has fewer
    steps, which are the newest, its oldest one stands for those before."""
    return [
        {name: values[max(len(values) - frames + index, 0)] for name, values in observation.items()}
        for index in range(frames)
    ]
