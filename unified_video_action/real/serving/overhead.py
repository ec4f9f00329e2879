"""What the server adds to a plan: the time from a client's question to its answer, less that of the policy.

Needs pyzmq, which the extra `dev` installs: the server itself does without.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import zmq

from unified_video_action.compat import openpi_messages, plain_pickle, umi_arx
from unified_video_action.poses import KINDS, EndEffectorSpec
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.real.serving.client import RemotePlanner
from unified_video_action.real.serving.core import Core
from unified_video_action.real.serving.requests import RequestSpec
from unified_video_action.real.serving.server import LOOPBACK, PolicyServer, add_arguments
from unified_video_action.spec import Horizon

WARM_UP = 20


class StillSession:
    """A policy that answers at once: stay where you are."""

    def __init__(self, description: PolicyDescription) -> None:
        self._plan = np.zeros((1, description.horizon.actions, description.action_dim), np.float32)

    def reset(self, *_: Any) -> None: ...

    def recall(self, *_: Any) -> None: ...

    def plan(self, *_: Any) -> np.ndarray:
        return self._plan


def measure(repeats: int = 300, frames: int = 4, size: int = 224) -> dict[str, dict[str, float]]:
    """Round trips over loopback of a history of `frames` frames of `size` x `size` pixels, by each protocol.

    Returns:
        protocol -> median_ms and p99_ms of round trips less the policy's time, and bytes of a request. UMI's messages
        hold frames in float32, openpi's in uint8; what UMI's client needs to pickle them, which no server changes, is
        not counted, what the other clients need to pack theirs is.
    """
    states = {name: kind for kind, (name, _) in umi_arx.STATES.items()}
    entries = {umi_arx.CAMERA: ObservationEntry("rgb", (size, size, 3), frames)}
    entries |= {name: ObservationEntry("low_dim", (KINDS[kind],), frames) for name, kind in states.items()}
    description = PolicyDescription(
        "still", entries, Horizon(frames), 10, 8, False, end_effector=EndEffectorSpec(states)
    )
    rng = np.random.default_rng(0)
    seen: dict[str, Any] = {name: rng.uniform(-0.5, 0.5, (frames, *entry.shape)) for name, entry in entries.items()}
    seen[umi_arx.CAMERA] = rng.integers(256, size=(frames, size, size, 3), dtype=np.uint8)
    floats = np.moveaxis(seen[umi_arx.CAMERA], -1, 1).astype(np.float32) / 255  # (T, 3, H, W)
    pickled = plain_pickle.write(seen | {umi_arx.CAMERA: floats})

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--checkpoint", ".", "--port", "0", "--umi-port", "0", "--allow-umi-pickle"])
    with ExitStack() as stack:
        core = stack.enter_context(Core(StillSession(description), RequestSpec(description), max_clients=2))
        ports = stack.enter_context(PolicyServer(core, args)).ports
        planner = stack.enter_context(RemotePlanner(f"ws://{LOOPBACK}:{ports['websocket']}"))
        planner.reset()
        client = stack.enter_context(stack.enter_context(zmq.Context()).socket(zmq.REQ))
        client.linger = 0
        client.connect(f"tcp://{LOOPBACK}:{ports['umi']}")

        def ask_umi() -> None:
            client.send(pickled)
            answer = plain_pickle.read(client.recv(), len(pickled))
            assert isinstance(answer, np.ndarray), answer

        asks = {
            "websocket": (lambda: planner.plan(seen), len(openpi_messages.pack(seen))),
            "umi": (ask_umi, len(pickled)),
        }
        times: dict[str, list[float]] = {name: [] for name in asks}
        for _ in range(WARM_UP + repeats):
            for name, (ask, _) in asks.items():  # taken in turns, so that a busy moment meets all of them
                begun = time.perf_counter()
                ask()
                taken = 1e3 * (time.perf_counter() - begun)
                times[name].append(taken - core.health()["infer_ms"]["last"])
    found = {}
    for name, (_, size) in asks.items():
        median, p99 = np.quantile(times[name][WARM_UP:], (0.5, 0.99))
        found[name] = {"median_ms": float(median), "p99_ms": float(p99), "bytes": float(size)}
    return found
