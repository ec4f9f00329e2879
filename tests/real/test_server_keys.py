"""Who may listen where, and who may talk to it."""

import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import zmq
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.real.server_support import INSTRUCTIONS, instant_core, observe, open_doors, options
from unified_video_action.compat.openpi_messages import pack, unpack
from unified_video_action.real.client import RemotePlanner
from unified_video_action.real.planner import PlannerError
from unified_video_action.real.server import keys, serving
from unified_video_action.real.server.serving import Access

KEY = "correct horse battery"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    assert serving.start(options("--make-keys", str(folder))) == 0
    return folder


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    return file


def test_keys_are_secret_and_not_overwritten(made: Path) -> None:
    assert {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()} == {
        *("server/server.key_secret", "server/clients/robot.key", "server/key"),
        *("robot/robot.key_secret", "robot/server.key", "robot/key"),
    }
    for secret in (*made.rglob("*.key_secret"), *made.rglob("key")):
        assert secret.stat().st_mode & 0o077 == 0
    assert "secret-key" not in (made / "robot" / "server.key").read_text()
    assert (made / "robot" / "key").read_text() == (made / "server" / "key").read_text()
    with pytest.raises(FileExistsError, match="--make-keys"):
        keys.make_keys(made)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_server_that_others_can_reach_needs_keys(host: str, made: Path, key_file: Path) -> None:
    with pytest.raises(ValueError, match=r"--host .* --make-keys .* --key-file .*UVA_SERVER_KEY.* --no-websocket"):
        Access.of(options("--host", host, "--zmq-keys", str(made / "server")))
    with pytest.raises(ValueError, match=r"--host .* --make-keys .* --zmq-keys .* --no-zmq"):
        Access.of(options("--host", host, "--key-file", str(key_file)))
    Access.of(options("--host", host, "--key-file", str(key_file), "--no-zmq"))
    Access.of(options("--host", host, "--zmq-keys", str(made / "server"), "--no-websocket"))
    both = Access.of(options("--host", host, "--key-file", str(key_file), "--zmq-keys", str(made / "server")))
    assert both.key == KEY and both.curve is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_this_machine_alone_needs_none(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(keys.VARIABLE, raising=False)
    access = Access.of(options("--host", host))
    assert access.key is None and access.curve is None


def test_a_key_comes_from_a_file_or_the_environment_and_cannot_be_guessed(key_file: Path) -> None:
    assert keys.read_key(None, {}) is None
    assert keys.read_key(None, {keys.VARIABLE: KEY}) == KEY
    assert keys.read_key(key_file, {keys.VARIABLE: "another key altogether"}) == KEY
    with pytest.raises(ValueError, match=keys.VARIABLE):
        keys.read_key(None, {keys.VARIABLE: "short"})
    with pytest.raises(FileNotFoundError, match="--key-file"):
        keys.read_key(key_file.with_name("none"), {})
    key_file.write_text("\n")
    with pytest.raises(ValueError, match="16 printable"):
        keys.read_key(key_file, {keys.VARIABLE: KEY})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--host", "no.such.host.invalid"), "--host"),
        (("--no-websocket", "--no-zmq"), "nothing is left"),
        (("--umi-client-yaml", "a.yaml"), "--allow-umi-pickle"),
        (("--zmq-keys", "missing"), "--make-keys"),
    ],
)
def test_mistakes_are_named(given: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Access.of(options(*given))


def test_the_comparison_is_of_whole_keys() -> None:
    assert keys.same(KEY, KEY)
    for wrong in ("", KEY[:-1], KEY + " ", KEY.upper(), "\ud800", "ключ"):
        assert not keys.same(wrong, KEY)


def test_the_websocket_asks_for_its_key(key_file: Path) -> None:
    with instant_core() as (core, _), open_doors(core, "--key-file", str(key_file)) as ports:
        url = f"http://127.0.0.1:{ports['websocket']}"
        for wrong in (None, "Api-Key", f"Api-Key {KEY}x", f"Bearer {KEY}", KEY):
            headers = {} if wrong is None else {"Authorization": wrong}
            with pytest.raises(InvalidStatus) as refused:
                connect(url.replace("http", "ws"), additional_headers=headers)
            assert refused.value.response.status_code == 401
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(urllib.request.Request(f"{url}/status", headers=headers))
        assert core.health()["refused"] == 10
        assert urllib.request.urlopen(f"{url}/healthz").read() == b"OK\n"
        request = urllib.request.Request(f"{url}/status", headers={"Authorization": f"Api-Key {KEY}"})
        assert b'"plans": 0' in urllib.request.urlopen(request).read()
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"], api_key=KEY)
        seen = observe(core.description) | {"prompt": INSTRUCTIONS[0]}
        assert client.infer(seen)["actions"].shape == (16, 10)


def test_a_page_in_a_browser_is_refused() -> None:
    with instant_core() as (core, _), open_doors(core) as ports:
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{ports['websocket']}", origin="http://example.org")
        assert refused.value.response.status_code == 403


def test_zeromq_asks_for_the_key_where_it_has_no_curve(key_file: Path) -> None:
    with instant_core() as (core, _), open_doors(core, "--key-file", str(key_file)) as ports:
        endpoint = f"tcp://127.0.0.1:{ports['zmq']}"
        for wrong in (None, KEY + "x"):
            with pytest.raises(PlannerError, match="asks for a key"):
                RemotePlanner(endpoint, key=wrong)
        with zmq.Context() as context, context.socket(zmq.REQ) as client:
            client.linger = 0
            client.connect(endpoint)
            for kind in ("describe", "health", "reset", "plan", "close", "none such"):
                client.send(pack({"kind": kind, "client": "a", "key": 7}))
                assert unpack(client.recv(), 10_000)["code"] == "wrong_key"
        with RemotePlanner(endpoint, key=KEY) as planner:
            planner.reset(0, INSTRUCTIONS[0])
            assert planner.plan(observe(core.description)).shape == (16, 10)


def test_curve_admits_known_clients_alone(made: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    keys.make_keys(stranger)
    os.replace(made / "robot" / "server.key", tmp_path / "server.key")
    (stranger / "robot" / "server.key").write_bytes((tmp_path / "server.key").read_bytes())
    (made / "robot" / "server.key").write_bytes((tmp_path / "server.key").read_bytes())
    with instant_core() as (core, _), open_doors(core, "--zmq-keys", str(made / "server")) as ports:
        endpoint = f"tcp://127.0.0.1:{ports['zmq']}"
        for wrong in (None, stranger / "robot"):
            with pytest.raises(PlannerError, match="no answer within"):
                RemotePlanner(endpoint, keys=wrong, connect_seconds=0.5)
        with RemotePlanner(endpoint, keys=made / "robot") as planner:
            planner.reset(0, INSTRUCTIONS[0])
            assert planner.plan(observe(core.description)).shape == (16, 10)


def test_a_client_without_its_keys_says_so(made: Path) -> None:
    with pytest.raises(ValueError, match=r"robot.key_secret is missing"):
        RemotePlanner("tcp://127.0.0.1:9", keys=made / "server")
    (made / "server" / "clients" / "robot.key").unlink()
    with pytest.raises(ValueError, match="no client is known"):
        keys.ServerCurve(made / "server")
