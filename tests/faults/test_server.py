"""The policy server under fire: garbage, messages without an end, connections that say nothing.

Malformed messages: tests/real/test_server_fuzzing.py.
"""

import itertools
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zmq
from websockets.sync.client import connect

from tests.real.server_support import INSTRUCTIONS, instant_core, observe, serve, umi_client
from tests.real.test_server_fuzzing import DESCRIPTION, openpi_messages, resident, umi_messages
from unified_video_action.compat import plain_pickle
from unified_video_action.compat.openpi_messages import pack, unpack
from unified_video_action.real.serving import access

TEXT = INSTRUCTIONS[0]
SECONDS = 20
GOOD = plain_pickle.write(umi_messages()[0])

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in what pickletools decodes


def is_right(actions: np.ndarray) -> bool:
    """Whether these are the actions that the policy plans for what good messages show: the newest position."""
    newest = observe(DESCRIPTION)["robot0_eef_pos"][-1]
    return actions.shape == (16, 10) and np.allclose(actions[:, :3], newest, atol=1e-6)


def require_umi_plan(ports: dict[str, int]) -> None:
    with umi_client(ports) as client:
        client.send(GOOD)
        assert is_right(plain_pickle.read(client.recv(), 2**20))


def test_garbage_does_not_end_the_server() -> None:
    """What is not even the transport's protocol."""
    rng = np.random.default_rng(4)
    greeting = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03"
    starts = [b"", b"GET / HTTP/1.1\r\n", greeting, b"POST /healthz HTTP/1.1\r\n\r\n"]
    with instant_core(DESCRIPTION, max_clients=2, instruction=TEXT) as (core, _):
        with serve(core, "--allow-umi-pickle") as ports:
            for start, protocol in itertools.product(starts * 5, ports):
                with socket.create_connection(("127.0.0.1", ports[protocol])) as client:
                    client.sendall(start + rng.bytes(int(rng.integers(0, 2000))))
            require_umi_plan(ports)
            with connect(f"ws://127.0.0.1:{ports['websocket']}", compression=None) as client:
                client.recv(timeout=SECONDS)
                client.send(pack(openpi_messages()[0]))
                assert is_right(unpack(client.recv(timeout=SECONDS), 2**20)["actions"])
            assert core.health()["status"] == "ok"


# -- messages without an end -------------------------------------------------------------------------------------------


def raw_zmq(port: int) -> socket.socket:
    """A connection after the handshake of ZeroMQ's protocol (ZMTP 3.0), as a REQ socket makes it."""
    client = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    client.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 3) + b"REQ"
    client.sendall(b"\x04" + bytes([len(ready)]) + ready)
    return client


@pytest.mark.parametrize("size", [100, 10_000])
def test_a_zeromq_message_without_an_end_ends_its_connection_and_takes_no_memory(size: int) -> None:
    part = b"\x03" + struct.pack(">Q", size) + bytes(size)  # more parts follow
    with instant_core(DESCRIPTION, instruction=TEXT) as (core, _), serve(core, "--allow-umi-pickle") as ports:
        before = resident()
        with raw_zmq(ports["umi"]) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(1000):
                client.sendall(part * (1_000_000 // size))
        assert resident() - before < 200 * 2**20
        require_umi_plan(ports)


def test_zeromq_connections_that_ask_for_nothing_make_room(monkeypatch) -> None:
    monkeypatch.setattr(access, "CONNECTIONS", 8)
    with instant_core(DESCRIPTION, instruction=TEXT) as (core, _), serve(core, "--allow-umi-pickle") as ports:
        silent = [raw_zmq(ports["umi"]) for _ in range(30)]
        try:
            require_umi_plan(ports)
            with connect(f"ws://127.0.0.1:{ports['websocket']}", compression=None) as client:
                client.recv(timeout=SECONDS)
            for each in silent:
                each.settimeout(2)
            assert gone(silent[0]) and not gone(silent[-1]), "the oldest are closed"
        finally:
            for each in silent:
                each.close()


def gone(client: socket.socket) -> bool:
    """Whether the server has closed it; what it said before is read."""
    try:
        while client.recv(1000):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def test_zeromq_messages_of_other_parts_or_too_long_are_answered_or_end_and_idle_clients_stay() -> None:
    with instant_core(DESCRIPTION, instruction=TEXT) as (core, _), serve(core, "--allow-umi-pickle") as ports:
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.linger, client.rcvtimeo = 0, 1000 * SECONDS
            client.heartbeat_ivl, client.heartbeat_timeout = 20, 200
            client.connect(f"tcp://127.0.0.1:{ports['umi']}")
            for parts in (1, 3, 2000):
                client.send_multipart([b""] * parts)
                assert f"{parts} frames: expected" in plain_pickle.read(client.recv_multipart()[1], 10_000)
            for _ in range(200):  # more bytes than one message may have, in whole ones
                client.send_multipart([b"", GOOD])
                assert is_right(plain_pickle.read(client.recv_multipart()[1], 10_000))
            time.sleep(0.5)  # its signs of life are answered: it connects once
            assert core.health()["clients"][0]["connected_s"] > 0.5
            client.send_multipart([b"", bytes(50_000_000)])
            client.rcvtimeo = 500
            with pytest.raises(zmq.Again):
                client.recv_multipart()
        assert core.health()["status"] == "ok"


# -- connections that say nothing --------------------------------------------------------------------------------------

FEW_FILES = """
import argparse, logging, resource, sys
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.real.serving.core import Core
from unified_video_action.real.serving.requests import RequestSpec
from unified_video_action.real.serving.server import PolicyServer, add_arguments
from unified_video_action.spec import Horizon

resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
logging.basicConfig(level=logging.INFO)
entries = {"image": ObservationEntry("rgb", (16, 16, 3), 4)}
parser = argparse.ArgumentParser()
add_arguments(parser)
args = parser.parse_args(["--checkpoint", ".", "--port", "0"])
with Core(None, RequestSpec(PolicyDescription("none", entries, Horizon(), 2, 8, False))) as core:
    with PolicyServer(core, args) as server:
        print(server.ports["websocket"], flush=True)
        sys.stdin.read()
"""


def healthy(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=3) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        return b"200 OK" in client.recv(1000)


@pytest.mark.parametrize(
    ("files", "connections", "said"),
    [(200, 300, "connections say nothing"), (24, 60, "could not be accepted (Too many open files)")],
    ids=["too many connections", "too few files"],
)
def test_connections_that_say_nothing_do_not_end_the_server(files: int, connections: int, said: str) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", FEW_FILES.replace("FILES", str(files), 1)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    silent: list[socket.socket] = []
    try:
        port = int(server.stdout.readline())
        for _ in range(connections):
            silent.append(socket.create_connection(("127.0.0.1", port), timeout=SECONDS))
        if files == 200:
            assert healthy(port)
        time.sleep(0.5)
        for each in silent:
            each.close()
        end = time.monotonic() + SECONDS
        while True:
            try:
                assert healthy(port)
                break
            except OSError:
                assert time.monotonic() < end and server.poll() is None
        _, errors = server.communicate("", timeout=SECONDS)
    finally:
        server.kill()
        for each in silent:
            each.close()
    assert said in errors and server.returncode == 0, errors[-2000:]
