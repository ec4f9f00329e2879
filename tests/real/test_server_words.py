"""What comes from outside is one line of bounded length wherever it is logged or sent back."""

import logging

import numpy as np
import pytest
from websockets.sync.client import connect

from tests.real.server_support import INSTRUCTIONS, describe, instant_core, observe, serve
from unified_video_action.compat.openpi_messages import pack, unpack
from unified_video_action.messages import shown
from unified_video_action.real.serving.requests import MOST_CHARACTERS, Refused

FORGED = "x\n2026-01-01 00:00:00,000 \x1b[31mall is well\u2028\r\x00\ud800"


def test_what_is_not_printable_is_escaped_and_what_is_long_is_cut() -> None:
    assert shown(FORGED, 100) == r"x\n2026-01-01 00:00:00,000 \x1b[31mall is well\u2028\r\x00\ud800"
    assert shown("fold the Tüchlein") == "fold the Tüchlein"
    assert shown("a" * 61) == "a" * 57 + "..." and shown("a" * 60) == "a" * 60
    assert Refused("bad_request", FORGED).text == shown(FORGED, 100)
    assert len(Refused("bad_request", "\n" * 10**6).text) == MOST_CHARACTERS


def clean(lines: list[str]) -> bool:
    return all(line.isprintable() and len(line) < 1200 for line in lines)


@pytest.mark.parametrize("known", [True, False])
def test_names_of_observations_cannot_forge_lines_of_the_log(known: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="unified_video_action")
    names = [FORGED.replace("\ud800", str(index)) for index in range(100)]
    message = {name: value[-1] for name, value in observe(describe()).items()} if known else {}
    message |= {"prompt": INSTRUCTIONS[0]} | dict.fromkeys(names, np.zeros(1))
    with instant_core() as (core, _), serve(core) as ports:
        with connect(f"ws://127.0.0.1:{ports['websocket']}", compression=None) as client:
            client.recv()
            client.send(pack(message))
            answer = client.recv()
        said = unpack(answer, 2**20)["server_notes"] if known else [answer]
        assert clean(said) and r"x\n2026" in said[0] and "more" in said[0]
        last_error = core.health()["last_error"]
        assert known or clean([last_error["text"]])
    lines = [record.getMessage() for record in caplog.records]
    assert clean(lines) and any(r"x\n2026" in line for line in lines)


@pytest.mark.parametrize("changed", [{"prompt": FORGED[:-1]}, {"reset": FORGED[:-1]}, {FORGED[:-1]: {FORGED[:-1]: 1}}])
def test_nor_can_its_texts(changed: dict, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="unified_video_action")
    with instant_core() as (core, _), serve(core) as ports:
        with connect(f"ws://127.0.0.1:{ports['websocket']}", compression=None) as client:
            client.recv()
            client.send(pack(changed))
            assert clean([client.recv()])
    assert clean([record.getMessage() for record in caplog.records])
