"""What `eval_real.py serve` says and returns when an option is wrong or a part of it dies."""

import argparse
import asyncio
import socket
import threading
from pathlib import Path

import pytest

from tests.real.server_support import InstantSession, describe, options
from unified_video_action.real.serving import access, loading, server
from unified_video_action.real.serving.core import Core
from unified_video_action.real.serving.requests import RequestSpec
from unified_video_action.real.serving.server import PolicyServer

FREE = ("--port", "0", "--umi-port", "0")


def unused(args: argparse.Namespace) -> Core:
    pytest.fail("the checkpoint was loaded before the options were looked at")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--umi-client-yaml", ".", "--allow-umi-pickle"), "--umi-client-yaml . is a folder"),
        (("--umi-client-yaml", "a.yaml"), "--allow-umi-pickle"),
        (("--ready-file", "none/ready.json"), "--ready-file .*: no folder"),
        (("--port", "70000"), "port 70000 at 127.0.0.1: .*0-65535.*--port"),
        (("--host", "192.0.2.1", "--key-file", "key"), "port 0 at 192.0.2.1: .*--host"),
        (("--host", "0.0.0.0"), "--host 0.0.0.0 can be reached by other machines"),
        (("--query-steps", "0"), "--query-steps 0"),
        (("--checkpoint", "key"), "--checkpoint key is a file.*convert_checkpoint.py"),
        (("--checkpoint", "none"), "--checkpoint none: no such folder"),
    ],
)
def test_options_are_looked_at_before_the_checkpoint_is_loaded(
    given: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(access.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_core", unused)
    Path("key").write_text("k" * 16)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        server.start(options(*FREE, *given))


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for option in ("--port", "--umi-port"):
            with pytest.raises(ValueError, match=f"port {port} at 127.0.0.1: Address already in use.* {option}"):
                server.start(options(*FREE, "--allow-umi-pickle", option, port))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("part", ["websocket handler", "umi handler", "inference"])
def test_a_server_of_which_a_part_died_says_so_and_ends(part: str, monkeypatch, caplog) -> None:
    core, enter = Core(InstantSession(describe()), RequestSpec(describe())), PolicyServer.__enter__

    def kill(made: PolicyServer) -> None:
        if part == "inference":
            core._jobs.put(5)
            return
        name = {"websocket handler": "wait_closed", "umi handler": "serve_forever"}[part]
        (task,) = [each for each in asyncio.all_tasks(made._loop) if each.get_coro().__name__ == name]
        made._loop.call_soon_threadsafe(task.cancel)

    def killed_soon(made: PolicyServer) -> PolicyServer:
        threading.Timer(0.2, kill, (made,)).start()
        return enter(made)

    monkeypatch.setattr(loading, "load_core", lambda _: core)
    monkeypatch.setattr(PolicyServer, "__enter__", killed_soon)
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.02)
    assert server.start(options(*FREE, "--allow-umi-pickle")) == 1
    assert f"the {part} died" in caplog.text
