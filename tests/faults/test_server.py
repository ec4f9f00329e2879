"""The policy server under fire: malformed messages over sockets, messages without an end, connections that say nothing.

`UVA_FAULTS=full` sends every door 10,000 messages, otherwise a few hundred.
"""

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.real import fuzzing
from tests.real.server_support import INSTRUCTIONS, describe, instant_core, observe, open_doors
from tests.real.test_server_fuzzing import openpi_messages, umi_messages
from unified_video_action.compat import plain_pickle
from unified_video_action.compat.openpi_messages import pack, unpack

MESSAGES = 10_000 if os.environ.get("UVA_FAULTS") == "full" else 300
SIZE = 16  # pixels: small messages, so that what is damaged is seldom a pixel
TEXT = INSTRUCTIONS[0]
SECONDS = 20
ROOT = Path(__file__).parents[2]
DESCRIPTION = describe(SIZE)

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in what pickletools decodes


def zmq_messages() -> list[dict[str, Any]]:
    plan = {"kind": "plan", "client": "a", "observation": observe(DESCRIPTION)}
    reset = {"kind": "reset", "client": "a", "name": "robot", "seed": 1, "text": TEXT}
    return [plan, reset, {"kind": "describe"}, {"kind": "health"}, {"kind": "close", "client": "a"}]


def is_right(actions: np.ndarray) -> bool:
    """Whether these are the actions that the policy plans for what good messages show: the newest position."""
    newest = observe(DESCRIPTION)["robot0_eef_pos"][-1]
    return actions.shape == (16, 10) and np.allclose(actions[:, :3], newest, atol=1e-6)


def over_zmq(port: int, messages: Iterator[bytes]) -> Iterator[bytes]:
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.linger, client.rcvtimeo = 0, 1000 * SECONDS
        client.connect(f"tcp://127.0.0.1:{port}")
        for message in messages:
            client.send(message)
            yield client.recv()


def garbage(port: int, rng: np.random.Generator) -> None:
    """What is not even the transport's protocol."""
    greeting = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03"
    for start in [b"", b"GET / HTTP/1.1\r\n", greeting, b"POST /healthz HTTP/1.1\r\n\r\n"] * 5:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(start + rng.bytes(int(rng.integers(0, 2000))))


def storm_zmq(port: int, _: Path) -> int:
    messages = fuzzing.msgpack_messages(zmq_messages(), MESSAGES, 5)
    answers = [unpack(answer, 2**20) for answer in over_zmq(port, messages)]
    good = [{"kind": "reset", "client": "b"}, {"kind": "plan", "client": "b", "observation": observe(DESCRIPTION)}]
    *_, answer = over_zmq(port, map(pack, good))
    assert len(answers) == MESSAGES and is_right(unpack(answer, 2**20)["actions"])
    return sum("error" in answer for answer in answers)


def storm_umi(port: int, folder: Path) -> int:
    messages = fuzzing.pickle_messages(umi_messages(), MESSAGES, 6, str(folder / "made"))
    answers = [plain_pickle.read(answer, 2**20) for answer in over_zmq(port, messages)]
    (answer,) = over_zmq(port, iter([plain_pickle.write(umi_messages()[0])]))
    assert len(answers) == MESSAGES and is_right(plain_pickle.read(answer, 2**20))
    assert not any(folder.iterdir())  # what hostile pickles try to make
    return sum(isinstance(each, str) for each in answers)


def storm_websocket(port: int, _: Path) -> int:
    refused = 0
    for message in fuzzing.msgpack_messages(openpi_messages(), MESSAGES, 7):
        with connect(f"ws://127.0.0.1:{port}", compression=None) as client:
            client.recv(timeout=SECONDS)
            client.send(message)
            answer = client.recv(timeout=SECONDS)
            if isinstance(answer, str):
                refused += 1
                with pytest.raises(ConnectionClosed):
                    client.recv(timeout=SECONDS)
            else:
                assert unpack(answer, 2**20)["actions"].shape == (16, 10)
    with connect(f"ws://127.0.0.1:{port}", compression=None) as client:
        client.recv(timeout=SECONDS)
        client.send(pack(openpi_messages()[0]))
        assert is_right(unpack(client.recv(timeout=SECONDS), 2**20)["actions"])
    return refused


@pytest.mark.timeout(3600 if MESSAGES == 10_000 else 120)
@pytest.mark.parametrize("storm", [storm_zmq, storm_websocket, storm_umi])
def test_every_malformed_message_is_answered_and_a_good_one_gets_its_plan(storm, tmp_path: Path) -> None:
    with instant_core(DESCRIPTION, instruction=TEXT, max_clients=2) as (core, _):
        with open_doors(core, "--allow-umi-pickle", "--lease", "0.001") as ports:
            port = ports[storm.__name__.removeprefix("storm_")]
            garbage(port, np.random.default_rng(4))
            assert storm(port, tmp_path) > MESSAGES / 2
            assert core.health()["status"] == "ok"


# -- messages without an end -------------------------------------------------------------------------------------------


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def raw_zmq(port: int) -> socket.socket:
    """A connection that has shaken hands by ZeroMQ's protocol (ZMTP 3.0) as a REQ socket does."""
    client = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    client.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 3) + b"REQ"
    client.sendall(b"\x04" + bytes([len(ready)]) + ready)
    return client


@pytest.mark.parametrize("size", [100, 10_000])
def test_a_zeromq_message_without_an_end_ends_its_connection_and_takes_no_memory(size: int) -> None:
    part = b"\x03" + struct.pack(">Q", size) + bytes(size)  # more parts follow
    with instant_core(DESCRIPTION, instruction=TEXT) as (core, _), open_doors(core) as ports:
        before = resident()
        with raw_zmq(ports["zmq"]) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(1000):
                client.sendall(part * (1_000_000 // size))
        assert resident() - before < 200 * 2**20
        good = [{"kind": "reset", "client": "b"}, {"kind": "plan", "client": "b", "observation": observe(DESCRIPTION)}]
        *_, answer = over_zmq(ports["zmq"], map(pack, good))
        assert is_right(unpack(answer, 2**20)["actions"])


def test_a_zeromq_message_of_many_parts_is_answered_and_idle_clients_stay() -> None:
    with instant_core(DESCRIPTION, instruction=TEXT) as (core, _), open_doors(core) as ports:
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.linger, client.rcvtimeo = 0, 1000 * SECONDS
            client.connect(f"tcp://127.0.0.1:{ports['zmq']}")
            for parts in (3, 2000):
                client.send_multipart([b""] * parts)
                assert f"{parts} frames: expected" in unpack(client.recv_multipart()[1], 10_000)["error"]
            for _ in range(200):  # more bytes than one message may have, in whole ones
                client.send_multipart([b"", pack({"kind": "plan", "client": "a", "observation": observe(DESCRIPTION)})])
                assert unpack(client.recv_multipart()[1], 10_000)["code"] == "no_episode"


# -- connections that say nothing --------------------------------------------------------------------------------------

FEW_FILES = """
import argparse, logging, resource, sys
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.real.server import serving
from unified_video_action.real.server.core import Core
from unified_video_action.real.server.requests import RequestSpec
from unified_video_action.spec import Horizon

resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
logging.basicConfig(level=logging.INFO)
entries = {"image": ObservationEntry("rgb", (16, 16, 3), 4)}
parser = argparse.ArgumentParser()
serving.add_arguments(parser)
args = parser.parse_args(["--port", "0", "--zmq-port", "0"])
with Core(None, RequestSpec(PolicyDescription("none", entries, Horizon(), 2, 8, False))) as core:
    doors = serving.doors(core, args, serving.Access.of(args))
    for door in doors.values():
        door.start()
    print(doors["websocket"].port, doors["zmq"].port, flush=True)
    sys.stdin.read()
    for door in doors.values():
        door.stop()
"""


def healthy(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        return b"200 OK" in client.recv(1000)


def raw(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SECONDS)


@pytest.mark.parametrize(
    ("files", "door", "said"),
    [(200, "websocket", "connections say nothing"), (100, "zmq", "could not be accepted (Too many open files)")],
)
def test_connections_that_say_nothing_do_not_end_the_server(files: int, door: str, said: str) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", FEW_FILES.replace("FILES", str(files), 1)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    silent: list[socket.socket] = []
    try:
        websocket, zeromq = map(int, server.stdout.readline().split())
        for _ in range(300 if door == "websocket" else 130):
            silent.append(raw(websocket if door == "websocket" else zeromq))
        if door == "websocket":  # the zmq door has all files: nobody can be let in
            assert healthy(websocket)
        else:
            end = time.monotonic() + SECONDS
            while len(os.listdir(f"/proc/{server.pid}/fd")) < files:
                assert time.monotonic() < end
                time.sleep(0.05)
            silent.append(raw(websocket))
            time.sleep(1)
        for each in silent:
            each.close()
        end = time.monotonic() + SECONDS
        while True:
            try:
                assert healthy(websocket)
                break
            except OSError:
                assert time.monotonic() < end and server.poll() is None
        _, errors = server.communicate("", timeout=SECONDS)
    finally:
        server.kill()
        for each in silent:
            each.close()
    assert said in errors and server.returncode == 0
