"""Who may listen where, who may talk to the server, and what may stand in its log and answers."""

import logging
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.real.server_support import INSTRUCTIONS, describe, instant_core, observe, serve, websocket_url
from unified_video_action.compat.openpi_messages import pack, unpack
from unified_video_action.real.planner import PlannerError
from unified_video_action.real.serving.access import VARIABLE, read_key, resolve
from unified_video_action.real.serving.client import RemotePlanner

KEY = "correct horse battery"
FORGED = "x\n2026-01-01 00:00:00,000 \x1b[31mall is well\u2028\r\x00"
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    return file


def test_a_server_that_others_can_reach_needs_a_key_that_cannot_be_guessed(key_file: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(ValueError, match=rf"--host .*python -c .*--key-file KEY or \${VARIABLE}"):
            read_key(resolve(host), None, {})
        assert read_key(resolve(host), key_file, {}) == KEY
    assert all(read_key(resolve(host), None, {}) is None for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"))
    assert read_key("::1", None, {VARIABLE: KEY}) == KEY
    assert read_key("::1", key_file, {VARIABLE: "another key altogether"}) == KEY
    with pytest.raises(ValueError, match=VARIABLE):
        read_key("::1", None, {VARIABLE: "short"})
    key_file.write_text("\n")
    with pytest.raises(ValueError, match="16 printable"):
        read_key("::1", key_file, {VARIABLE: KEY})


def test_the_server_asks_for_its_key_and_refuses_pages_of_a_browser(key_file: Path) -> None:
    with instant_core() as (core, _), serve(core, "--key-file", str(key_file)) as ports:
        url = f"http://127.0.0.1:{ports['websocket']}"
        address = url.replace("http", "ws")
        wrong = [None, "Api-Key", f"Api-Key {KEY}x", f"Api-Key {KEY[:-1]}", f"Bearer {KEY}", KEY, "Api-Key \xe9"]
        for header in wrong:
            headers = {} if header is None else {"Authorization": header}
            with pytest.raises(InvalidStatus) as refused:
                connect(address, additional_headers=headers)
            assert refused.value.response.status_code == 401
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(urllib.request.Request(f"{url}/status", headers=headers))
        assert core.health()["refused"] == 2 * len(wrong)
        assert urllib.request.urlopen(f"{url}/healthz").read() == b"OK\n"
        right = {"Authorization": f"Api-Key {KEY}"}
        with pytest.raises(InvalidStatus) as refused:
            connect(address, origin="http://example.org", additional_headers=right)
        assert refused.value.response.status_code == 403
        answer = urllib.request.urlopen(urllib.request.Request(f"{url}/status", headers=right))
        assert answer.headers["Content-Type"] == "application/json" and b'"plans": 0' in answer.read()
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"], api_key=KEY)
        assert client.infer(observe(core.description) | {"prompt": INSTRUCTIONS[0]})["actions"].shape == (16, 10)
        client._ws.close()
        with pytest.raises(PlannerError, match="asks for another key"):
            RemotePlanner(address)
        with RemotePlanner(address, KEY) as planner:
            planner.reset(0, INSTRUCTIONS[0])
            assert planner.plan(observe(core.description)).shape == (16, 10)


def test_other_addresses_of_this_machine_serve_as_well() -> None:
    with instant_core() as (core, _), serve(core, "--host", "::1") as ports:
        RemotePlanner(f"ws://[::1]:{ports['websocket']}").close()


# -- words of strangers ------------------------------------------------------------------------------------------------


def clean(lines: list[str]) -> bool:
    return all(line.isprintable() and len(line) < 1200 for line in lines)


@pytest.mark.parametrize(
    "changed",
    [
        {f"{FORGED}{index}": np.zeros(1) for index in range(100)},
        {"camera0_rgb": FORGED},
        {"prompt": FORGED},
        {"reset": FORGED},
        {FORGED: {FORGED: 1}},
    ],
)
def test_texts_of_a_client_cannot_forge_lines_of_the_log(changed: dict, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="unified_video_action")
    message = {name: value[-1] for name, value in observe(describe()).items()} | {"prompt": INSTRUCTIONS[0]} | changed
    with instant_core() as (core, _), serve(core) as ports:
        with connect(websocket_url(ports), compression=None) as client:
            client.recv()
            for known in (message, changed):
                client.send(pack(known))
                answer = client.recv()
                assert clean([answer] if isinstance(answer, str) else unpack(answer, 2**20)["server_notes"])
                if isinstance(answer, str):
                    break
        assert clean([core.health()["last_error"]["text"]])
    lines = [record.getMessage() for record in caplog.records]
    assert clean(lines) and any(r"x\n2026" in line for line in lines) == (FORGED in "".join(changed))
