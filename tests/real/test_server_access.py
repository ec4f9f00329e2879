"""Who may listen where, and who may talk to the server."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.real.server_support import INSTRUCTIONS, instant_core, observe, serve
from unified_video_action.real.planner import PlannerError
from unified_video_action.real.serving.access import VARIABLE, read_key, resolve
from unified_video_action.real.serving.client import RemotePlanner

KEY = "correct horse battery"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    return file


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_server_that_others_can_reach_needs_a_key(host: str, key_file: Path) -> None:
    with pytest.raises(ValueError, match=rf"--host .*python -c .*--key-file KEY or \${VARIABLE}"):
        read_key(resolve(host), None, {})
    assert read_key(resolve(host), key_file, {}) == KEY


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_this_machine_alone_needs_none(host: str) -> None:
    assert read_key(resolve(host), None, {}) is None


def test_a_key_comes_from_a_file_or_the_environment_and_cannot_be_guessed(key_file: Path) -> None:
    assert read_key("::1", None, {VARIABLE: KEY}) == KEY
    assert read_key("::1", key_file, {VARIABLE: "another key altogether"}) == KEY
    with pytest.raises(ValueError, match=VARIABLE):
        read_key("::1", None, {VARIABLE: "short"})
    with pytest.raises(FileNotFoundError, match="--key-file"):
        read_key("::1", key_file.with_name("none"), {})
    key_file.write_text("\n")
    with pytest.raises(ValueError, match="16 printable"):
        read_key("::1", key_file, {VARIABLE: KEY})


def test_the_server_asks_for_its_key(key_file: Path) -> None:
    with instant_core() as (core, _), serve(core, "--key-file", str(key_file)) as ports:
        url = f"http://127.0.0.1:{ports['websocket']}"
        wrong = [None, "Api-Key", f"Api-Key {KEY}x", f"Api-Key {KEY[:-1]}", f"Bearer {KEY}", KEY, "Api-Key \xe9"]
        for header in wrong:
            headers = {} if header is None else {"Authorization": header}
            with pytest.raises(InvalidStatus) as refused:
                connect(url.replace("http", "ws"), additional_headers=headers)
            assert refused.value.response.status_code == 401
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(urllib.request.Request(f"{url}/status", headers=headers))
        assert core.health()["refused"] == 2 * len(wrong)
        assert urllib.request.urlopen(f"{url}/healthz").read() == b"OK\n"
        request = urllib.request.Request(f"{url}/status", headers={"Authorization": f"Api-Key {KEY}"})
        assert b'"plans": 0' in urllib.request.urlopen(request).read()
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"], api_key=KEY)
        assert client.infer(observe(core.description) | {"prompt": INSTRUCTIONS[0]})["actions"].shape == (16, 10)
        client._ws.close()
        for given in (None, KEY + "x"):
            with pytest.raises(PlannerError, match="asks for another key"):
                RemotePlanner(url.replace("http", "ws"), given)
        with RemotePlanner(url.replace("http", "ws"), KEY) as planner:
            planner.reset(0, INSTRUCTIONS[0])
            assert planner.plan(observe(core.description)).shape == (16, 10)


def test_a_page_in_a_browser_is_refused() -> None:
    with instant_core() as (core, _), serve(core) as ports:
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{ports['websocket']}", origin="http://example.org")
        assert refused.value.response.status_code == 403


def test_other_addresses_of_this_machine_serve_as_well() -> None:
    with instant_core() as (core, _), serve(core, "--host", "::1") as ports:
        with RemotePlanner(f"ws://[::1]:{ports['websocket']}") as planner:
            planner.reset(0, INSTRUCTIONS[0])
            assert planner.plan(observe(core.description)).shape == (16, 10)
