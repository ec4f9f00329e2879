"""The policy server's core: one policy, the thread that plans with it, and the clients it plans for."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_video_action.inference.continuation import Continuation
from unified_video_action.messages import few, shown
from unified_video_action.real.planner import moving_average
from unified_video_action.real.serving.histories import histories
from unified_video_action.real.serving.requests import BAD_REQUEST, BUSY, NO_EPISODE, POLICY_FAILED, STOPPING, Refused

if TYPE_CHECKING:
    from unified_video_action.inference.session import PolicySession
    from unified_video_action.real.serving.requests import RequestSpec

log = logging.getLogger(__name__)
STOP_SECONDS = 30.0  # in which a plan under way may be finished when the server stops
GRACE_SECONDS = 0.5  # for it to be noticed that a client is gone, whose slot the next one asks for
RETRY_SECONDS = 0.02  # between two looks for a slot
REMEMBERED = 1000  # plans whose times are reported


def _stopping() -> Refused:
    return Refused(STOPPING, "the server is stopping")


@dataclass(frozen=True)
class Plan:
    actions: np.ndarray  # (A, D) float32
    infer_ms: float  # encoding and planning
    wait_ms: float  # for other clients' plans
    notes: tuple[str, ...]  # for the client's user; each is sent once


class Client:
    """A client and its slot of the session; made by `Core.open`."""

    def __init__(self, core: Core, name: str, slot: int) -> None:
        self.name, self.slot = name, slot
        self.since = time.monotonic()
        self.plans = 0
        self.has_episode = False
        self.notes: list[str] = []  # that were not sent yet
        self._core = core
        self._noted: set[str] = set()

    def reset(self, seed: Any = 0, text: Any = None) -> Future[None]:
        """Start an episode.

        Args:
            seed: of the episode's noise. text: the instruction; None: the server's own.

        Raises:
            Refused: a bad argument. The future: an instruction that the policy cannot encode.
        """
        spec = self._core.spec
        seed, text = spec.seed(seed), spec.text(text)
        text = self._core.instruction if text is None else text
        if spec.description.follows_text and text is None:
            raise Refused(BAD_REQUEST, "text: this policy follows instructions; send one, or serve with --task TEXT")
        return self._core.submit(self, lambda: self._core.reset(self, seed, text))

    def plan(self, observation: Any, prefix: Any = None, weights: Any = None) -> Future[Plan]:
        """Plan from a whole history.

        Args:
            observation: entry of the description -> (steps, *shape).
            prefix, weights: actions (n, D) that the plan keeps to and by how much (n,), see `Continuation`; or None.

        Raises:
            Refused: a bad argument, or no episode. The future: a policy that failed.
        """
        spec = self._core.spec
        checked, kept = spec.observation(observation), spec.prefix(prefix, weights)
        for name, text in spec.unusual(checked).items():
            self.note(f"range of {name}", text)
        if not self.has_episode:
            raise Refused(NO_EPISODE, f"{self.name} has no episode here: reset first")
        asked = time.monotonic()
        return self._core.submit(self, lambda: self._core.plan(self, checked, kept, asked))

    def note(self, about: str, text: str) -> None:
        """Warn in the log and in the next answer; once about each thing."""
        if about not in self._noted:
            self._noted.add(about)
            self.notes.append(text)
            log.warning("%s: %s", self.name, text)

    def close(self) -> None:
        self._core.leave(self)


class Core:
    """Plans for up to `max_clients` in turn. Its thread is the only one that touches the session.

    Args:
        session: with `max_clients` slots.
        smooth: average actions over three steps, as the published robots' server does.
        instruction: of episodes whose client sends none.
    """

    def __init__(
        self,
        session: PolicySession,
        spec: RequestSpec,
        max_clients: int = 1,
        smooth: bool = False,
        instruction: str | None = None,
    ) -> None:
        self.spec, self.description, self.max_clients, self.smooth = spec, spec.description, max_clients, smooth
        self.instruction = spec.text(instruction)
        self._session = session
        self._clients: list[Client] = []
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Client, Future] | None] = queue.SimpleQueue()
        self._running: Future | None = None
        self._stopping = False
        self._started, self._begun = time.monotonic(), None  # the server, and the plan under way
        self._times: deque[float] = deque(maxlen=REMEMBERED)  # ms
        self._plans = self._failed = self._refused = 0
        self._last_error: tuple[str, float] | None = None
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def __enter__(self) -> Core:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Refuse those who wait; let the plan under way be finished, unless it takes too long."""
        with self._lock:
            self._stopping = True
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        if (stuck := self._running) is not None and not stuck.done():
            stuck.set_exception(_stopping())

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def open(self, name: str) -> Client:
        """Let a client in. Raises Refused where all slots are taken; the text names who is connected."""
        with self._lock:
            if self._stopping:
                raise _stopping()
            if len(self._clients) == self.max_clients:
                now = time.monotonic()
                who = few([f"{each.name} (for {now - each.since:.0f} s)" for each in self._clients])
                busy = f"{self.max_clients} of {self.max_clients} clients are connected"
                raise Refused(BUSY, f"{busy}: {who}; see --max-clients and --queue")
            slot = min(set(range(self.max_clients)) - {each.slot for each in self._clients})
            client = Client(self, name, slot)
            self._clients.append(client)
        log.info("%s connected (%d of %d)", name, len(self._clients), self.max_clients)
        return client

    def leave(self, client: Client) -> None:
        with self._lock:
            if client not in self._clients:
                return
            self._clients.remove(client)
        log.info("%s left after %d plans", client.name, client.plans)

    def submit(self, client: Client, work: Callable[[], Any]) -> Future:
        """Have work done in the inference thread, first come, first served."""
        future: Future = Future()
        with self._lock:
            if self._stopping:
                raise _stopping()
            self._jobs.put((work, client, future))
        return future

    # -- in the inference thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, client, future = job
            if not future.set_running_or_notify_cancel():  # nobody waits for it any more
                continue
            self._running = future
            result = self._done(work, client)
            if not future.done():  # else the server was stopped meanwhile, and waited long enough
                future.set_exception(result) if isinstance(result, Refused) else future.set_result(result)
            self._running = None

    def _done(self, work: Callable[[], Any], client: Client) -> Any:
        """What comes of the work, or why nothing does."""
        try:
            if self._stopping:
                return _stopping()
            if client not in self._clients:
                return Refused(NO_EPISODE, f"{client.name} was disconnected: reset first")
            return work()
        except Exception as error:  # whatever a policy does, the server goes on
            if not isinstance(error, Refused):
                log.exception("the policy failed for %s", client.name)
                what = shown(f"{type(error).__name__}: {error}".splitlines()[0], 200)
                error = Refused(POLICY_FAILED, f"the policy failed ({what}); the server's log says more")
            if error.code == POLICY_FAILED:
                log.error("%s: %s", client.name, error.text)
                self._failed, self._last_error = self._failed + 1, (error.text, time.monotonic())
            return error

    def reset(self, client: Client, seed: int, text: str | None) -> None:
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
        self, client: Client, observation: Mapping[str, np.ndarray], kept: Continuation | None, asked: float
    ) -> Plan:
        self._begun = begun = time.monotonic()
        try:
            self._session.recall(histories(observation, self.description.horizon.history), client.slot)
            actions = self._session.plan([client.slot], None if kept is None else {client.slot: kept})[0]  # (A, D)
        finally:
            self._begun = None
        infer_ms = 1e3 * (time.monotonic() - begun)
        if not np.isfinite(actions).all():
            raise Refused(POLICY_FAILED, "the policy's plan holds numbers that are not finite")
        client.plans += 1
        with self._lock:
            self._plans += 1
            self._times.append(infer_ms)
        notes, client.notes = tuple(client.notes), []
        return Plan(moving_average(actions) if self.smooth else actions, infer_ms, 1e3 * (begun - asked), notes)

    # -- health --------------------------------------------------------------------------------------------------------

    def refused(self, what: str) -> None:
        """Count a message that was answered with an error."""
        with self._lock:
            self._refused, self._last_error = self._refused + 1, (what, time.monotonic())

    def health(self) -> dict[str, Any]:
        """JSON-like facts; `infer_ms` is of the last plans."""
        now, begun, error = time.monotonic(), self._begun, self._last_error
        with self._lock:
            times, clients = np.array(self._times), list(self._clients)
        last = {"last": times[-1], "median": np.median(times), "p99": np.quantile(times, 0.99)} if len(times) else {}
        return {
            "status": "ok" if self.alive and not self._stopping else "stopping",
            "policy": self.description.name,
            "queue": self._jobs.qsize(),
            "clients": [{"name": c.name, "connected_s": now - c.since, "plans": c.plans} for c in clients],
            "max_clients": self.max_clients,
            "uptime_s": now - self._started,
            "plans": self._plans,
            "failed": self._failed,
            "refused": self._refused,
            "infer_ms": {name: float(value) for name, value in last.items()},
            "planning_for_s": 0.0 if begun is None else now - begun,
            "last_error": None if error is None else {"text": error[0], "ago_s": now - error[1]},
        }


async def open_soon(
    core: Core, name: str, is_there: Callable[[], bool] = lambda: True, seconds: float = GRACE_SECONDS
) -> Client:
    """`core.open`, tried again for so long and for as long as the client is there. Raises Refused."""
    end = time.monotonic() + seconds
    while True:
        try:
            return core.open(name)
        except Refused as error:
            if error.code != BUSY or time.monotonic() > end or not is_there():
                raise
        await asyncio.sleep(RETRY_SECONDS)
