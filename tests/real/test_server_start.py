"""What `eval_real.py serve` says and returns when an option is wrong or a part of it dies."""

import errno
import socket
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real.server_support import InstantSession, describe, options
from unified_video_action.real.server import listener, loading, serving
from unified_video_action.real.server.core import Core
from unified_video_action.real.server.listener import Listener
from unified_video_action.real.server.requests import RequestSpec

ROOT = Path(__file__).parents[2]
SECONDS = 20


def unused(args: Namespace) -> Core:
    pytest.fail("the checkpoint was loaded before the options were looked at")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--umi-client-yaml", "none/latest.yaml", "--allow-umi-pickle"), "--umi-client-yaml .*: no folder .*make it"),
        (("--umi-client-yaml", ".", "--allow-umi-pickle"), "--umi-client-yaml . is a folder"),
        (("--ready-file", "none/ready.json"), "--ready-file .*: no folder"),
        (("--port", "70000"), "port 70000 at 127.0.0.1: .*0-65535.*--port"),
        (("--zmq-port", "70000"), "port 70000 .*--zmq-port"),
        (("--umi-port", "-1", "--allow-umi-pickle"), "port -1 .*--umi-port"),
        (("--host", "192.0.2.1", "--no-websocket", "--zmq-keys", "KEYS"), "port 0 at 192.0.2.1: .*--host"),
        (("--lease", "0"), "--lease 0"),
        (("--lease", "nan"), "--lease nan"),
        (("--query-steps", "0"), "--query-steps 0"),
        (("--max-clients", "0"), "--max-clients 0"),
    ],
)
def test_options_are_looked_at_before_the_checkpoint_is_loaded(
    given: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_core", unused)
    serving.start(options("--make-keys", "made"))
    given = tuple("made/server" if each == "KEYS" else each for each in given)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        serving.start(options("--checkpoint", str(tmp_path), "--port", "0", "--zmq-port", "0", *given))


@pytest.mark.parametrize("option", ["--port", "--zmq-port", "--umi-port"])
def test_a_port_in_use_is_said_before_the_checkpoint_is_loaded(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_core", unused)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = ("--port", "0", "--zmq-port", "0", "--umi-port", "0", "--allow-umi-pickle", option, port)
        with pytest.raises(ValueError, match=f"port {port} at 127.0.0.1: Address already in use.* {option}"):
            serving.start(options("--checkpoint", str(tmp_path), *given))


def test_a_mistake_is_one_line_of_eval_real(tmp_path: Path) -> None:
    file = tmp_path / "policy.ckpt"
    file.write_bytes(b"")
    for given, said in ((file, "convert_checkpoint.py"), (tmp_path / "none", "no such folder")):
        command = [sys.executable, "eval_real.py", "serve", "--checkpoint", str(given)]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and said in done.stderr


def _kill_websocket(core: Core, made: dict[str, serving.Door]) -> None:
    made["websocket"]._server.socket.close()
    made["websocket"]._server.shutdown_notifier.send(b"x")


def _kill_zmq(core: Core, made: dict[str, serving.Door]) -> None:
    made["zmq"]._message = None
    with socket.create_connection(("127.0.0.1", made["zmq"].port)) as client:
        client.sendall(b"\x01\x00\x01\x00\x02\x00a")  # a message by ZeroMQ's oldest protocol
        threading.Event().wait(0.5)


def _kill_inference(core: Core, made: dict[str, serving.Door]) -> None:
    core._ready = 5  # an error nobody foresaw
    with core._changed:
        core._changed.notify_all()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("kill", "said"),
    [(_kill_websocket, "websocket door"), (_kill_zmq, "zmq door"), (_kill_inference, "inference")],
    ids=["websocket", "zmq", "inference"],
)
def test_a_server_of_which_a_part_died_says_so_and_ends(
    kill: Callable, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = Core(InstantSession(describe()), RequestSpec(describe()))
    made: dict[str, serving.Door] = {}
    doors = serving.doors

    def remember(*given) -> dict[str, serving.Door]:
        made.update(doors(*given))
        return made

    monkeypatch.setattr(loading, "load_core", lambda _: core)
    monkeypatch.setattr(serving, "doors", remember)
    monkeypatch.setattr(serving, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(core, "stop", lambda: None)
    threading.Timer(0.3, kill, (core, made)).start()
    assert serving.start(options("--checkpoint", str(tmp_path), "--port", "0", "--zmq-port", "0")) == 1
    assert f"the {said} died" in caplog.text


# -- the websocket's listening socket ----------------------------------------------------------------------------------


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listener, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(listener, "POLL_SECONDS", 0.05)
    with Listener("127.0.0.1", 0, 2) as made:
        yield made


def test_accepting_goes_on_after_what_passes(
    listening: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.ENOBUFS, errno.EMFILE]
    accept = socket.socket.accept

    def failing(each: socket.socket):
        if errors:
            raise OSError(errors.pop(0), "odd")
        return accept(each)

    monkeypatch.setattr(socket.socket, "accept", failing)
    with socket.create_connection(listening.getsockname()) as client:
        connection, peer = listening.accept()
        assert peer == client.getsockname() and not errors
        connection.close()
    assert caplog.text.count("could not be accepted (odd)") == 1  # the same is said once in a while


def test_accepting_ends_with_the_socket_and_where_it_cannot_work(
    listening: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(socket.socket, "accept", lambda _: (_ for _ in ()).throw(OSError(errno.EINVAL, "bad")))
    with pytest.raises(OSError, match="bad"):
        listening.accept()
    assert "no connection can be accepted any more" in caplog.text
    monkeypatch.undo()
    threading.Timer(0.1, listening.close).start()
    with pytest.raises(OSError):  # noqa: PT011
        listening.accept()


def test_the_oldest_of_too_many_that_say_nothing_is_closed_and_those_that_shook_hands_stay(listening: Listener) -> None:
    def wait_for_its_end(connection: socket.socket) -> None:
        connection.recv(1)
        connection.close()

    clients, threads = [], []
    for index in range(6):
        clients.append(socket.create_connection(listening.getsockname(), timeout=SECONDS))
        connection, _ = listening.accept()
        threads.append(threading.Thread(target=wait_for_its_end, args=(connection,)))
        threads[-1].start()
        if index in (0, 3):
            listening.shaken(connection)
    for closed in (1, 2):
        assert clients[closed].recv(1) == b""
    for kept in (0, 3, 4, 5):
        clients[kept].settimeout(0.05)
        with pytest.raises(TimeoutError):
            clients[kept].recv(1)
    for each in clients:
        each.close()
    for thread in threads:
        thread.join()
