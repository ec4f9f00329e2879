"""What the server adds to a plan: the time from a client's question to its answer, less that of the policy."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import zmq
from websockets.sync.client import connect

from unified_video_action.compat import openpi_messages, plain_pickle, umi_arx
from unified_video_action.inference.continuation import Continuation
from unified_video_action.poses import KINDS, HandSpec
from unified_video_action.real.client import RemotePlanner
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.real.server import serving
from unified_video_action.real.server.core import Core
from unified_video_action.real.server.requests import RequestSpec
from unified_video_action.spec import Horizon

WARM_UP = 20


class StillSession:
    """A policy that answers at once: stay where you are."""

    def __init__(self, description: PolicyDescription) -> None:
        self._plan = np.zeros((1, description.horizon.actions, description.action_dim), np.float32)

    def reset(self, slot: int = 0, seed: int = 0, text: str | None = None) -> None: ...

    def recall(self, history: list[dict[str, np.ndarray]], slot: int = 0) -> None: ...

    def plan(self, slots: list[int], going_on: Mapping[int, Continuation] | None = None) -> np.ndarray:
        return self._plan


def describe(frames: int = 4, size: int = 224) -> PolicyDescription:
    """A hand with one camera and its four states."""
    states = {name: kind for kind, (name, _) in umi_arx.STATES.items()}
    entries = {umi_arx.CAMERA: ObservationEntry("rgb", (size, size, 3), frames)}
    entries |= {name: ObservationEntry("low_dim", (KINDS[kind],), frames) for name, kind in states.items()}
    return PolicyDescription("still", entries, Horizon(frames), 10, 8, False, hand=HandSpec(states))


def measure(repeats: int = 300, frames: int = 4, size: int = 224) -> dict[str, dict[str, float]]:
    """Round trips over loopback of a history of `frames` frames of `size` x `size` pixels, through every door.

    Returns:
        door -> median_ms and p99_ms of round trips less the policy's time, and bytes of a request. UMI's messages hold
        frames in float32, the others in uint8; what UMI's client needs to pickle them, which no server changes, is not
        counted, what the other clients need to pack theirs is.
    """
    description = describe(frames, size)
    observation = _observation(description)
    with ExitStack() as stack:
        core = stack.enter_context(Core(StillSession(description), RequestSpec(description), max_clients=3))
        ports = stack.enter_context(_doors(core))
        asks = {
            "zmq": stack.enter_context(_zmq(ports["zmq"], observation)),
            "websocket": stack.enter_context(_websocket(ports["websocket"], observation)),
            "umi": stack.enter_context(_umi(ports["umi"], observation)),
        }
        times: dict[str, list[float]] = {name: [] for name in asks}
        sizes = {}
        for _ in range(WARM_UP + repeats):
            for name, ask in asks.items():  # taken in turns, so that a busy moment meets all of them
                begun = time.perf_counter()
                sizes[name] = ask()
                taken = 1e3 * (time.perf_counter() - begun)
                times[name].append(taken - core.monitor.facts()["infer_ms"]["last"])
    return {
        name: {
            "median_ms": float(np.median(each[WARM_UP:])),
            "p99_ms": float(np.quantile(each[WARM_UP:], 0.99)),
            "bytes": float(sizes[name]),
        }
        for name, each in times.items()
    }


def _observation(description: PolicyDescription) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(256, size=(entry.steps, *entry.shape), dtype=np.uint8)
        if entry.kind == "rgb"
        else rng.uniform(-0.5, 0.5, (entry.steps, *entry.shape))
        for name, entry in description.observations.items()
    }


@contextmanager
def _doors(core: Core) -> Iterator[dict[str, int]]:
    args = Namespace(
        no_zmq=False, zmq_port=0, lease=60.0, no_websocket=False, port=0, queue=False, query_steps=None,
        allow_umi_pickle=True, umi_port=0, umi_client_yaml=None,
    )  # fmt: skip
    opened = serving.doors(core, args, serving.Access(serving.LOOPBACK, None, None))
    with ExitStack() as stack:
        for door in opened.values():
            door.start()
            stack.callback(door.stop)
        yield {name: door.port for name, door in opened.items()}


Ask = Callable[[], int]  # one round trip; the bytes of its request


@contextmanager
def _zmq(port: int, observation: Mapping[str, np.ndarray]) -> Iterator[Ask]:
    size = len(openpi_messages.pack(dict(observation)))
    with RemotePlanner(f"tcp://{serving.LOOPBACK}:{port}") as planner:
        planner.reset()

        def ask() -> int:
            planner.plan(observation)
            return size

        yield ask


@contextmanager
def _websocket(port: int, observation: Mapping[str, np.ndarray]) -> Iterator[Ask]:
    with connect(f"ws://{serving.LOOPBACK}:{port}", compression=None, max_size=None) as connection:
        connection.recv()

        def ask() -> int:
            request = openpi_messages.pack(dict(observation))
            connection.send(request)
            _expect(openpi_messages.unpack(connection.recv(), len(request))["actions"])
            return len(request)

        yield ask


@contextmanager
def _umi(port: int, observation: Mapping[str, np.ndarray]) -> Iterator[Ask]:
    message: dict[str, Any] = dict(observation)
    message[umi_arx.CAMERA] = np.moveaxis(message[umi_arx.CAMERA], -1, 1).astype(np.float32) / 255  # (T, 3, H, W)
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.linger = 0
        client.connect(f"tcp://{serving.LOOPBACK}:{port}")

        request = plain_pickle.write(message)

        def ask() -> int:
            client.send(request)
            _expect(plain_pickle.read(client.recv(), len(request)))
            return len(request)

        yield ask


def _expect(actions: Any) -> None:
    if not isinstance(actions, np.ndarray):
        raise RuntimeError(f"the server answers {actions!r} in place of actions")
