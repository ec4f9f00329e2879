"""Thousands of malformed messages for what reads them: each is answered, nothing is run, memory stays flat.

`UVA_FAULTS=full` gives each protocol 10,000 of them. What no message is: tests/faults/test_server.py.
"""

import asyncio
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.real import fuzzing
from tests.real.server_support import INSTRUCTIONS, describe, instant_core, observe
from unified_video_action.compat import plain_pickle
from unified_video_action.compat.openpi_messages import pack, unpack
from unified_video_action.real.serving.openpi import OpenpiHandler
from unified_video_action.real.serving.requests import Refused
from unified_video_action.real.serving.umi_arx import UmiHandler

MESSAGES = 10_000 if os.environ.get("UVA_FAULTS") == "full" else 1_500  # for each protocol
GROWTH = 64 * 2**20  # bytes of memory that the process may have gained at the end
PEAK = 256 * 2**20  # and at any time
SIZE = 16  # pixels: small messages, so that what is damaged is seldom a pixel
TEXT = INSTRUCTIONS[0]
RUNS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")

DESCRIPTION = describe(SIZE)
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in what pickletools decodes


class Watch:
    """Hears of what the interpreter is made to do, through an audit hook, which cannot be taken away again."""

    on = False
    heard: list[str] = []

    @classmethod
    def hook(cls, event: str, _: tuple) -> None:
        if cls.on and event in RUNS:
            cls.heard.append(event)


sys.addaudithook(Watch.hook)


@pytest.fixture
def sentinel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file that hostile messages try to make."""
    monkeypatch.setattr(logging.getLogger("unified_video_action.real.serving"), "level", logging.ERROR)
    path = tmp_path / "made"
    Watch.heard.clear()
    yield str(path)
    Watch.on = False
    assert not Watch.heard
    assert not path.exists() and not list(tmp_path.glob("made*"))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bombard(
    messages: Iterator[bytes], send: Callable[[bytes], bool], check: Callable[[], None], hostile: int = 0
) -> None:
    """Send all, and good ones in between; `send` tells whether one was refused, as the first `hostile` must be."""
    Watch.on = True
    refused = count = 0
    for message in messages:
        if count == 500:  # what the first ones loaded is not growth
            before, highest = resident(), peak()
        refused += send(message)
        count += 1
        assert refused == count or count > hostile, message[:200]
        if count % 250 == 0:
            check()
    assert count == MESSAGES and refused > MESSAGES / 2
    assert resident() - before < GROWTH
    assert peak() - max(before, highest) < PEAK


def openpi_messages() -> list[dict[str, Any]]:
    whole = observe(DESCRIPTION)
    single = {name: value[-1] for name, value in whole.items()} | {"prompt": TEXT}
    own = {"observation/image": np.zeros((SIZE, SIZE, 3), np.uint8), "observation/state": np.zeros(16), "prompt": TEXT}
    prefix = {"prefix": np.zeros((4, 10), np.float32), "prefix_weights": np.ones(4)}
    begins = {"reset": True, "seed": 1, "prompt": TEXT}
    return [single, single | {"step": 5}, whole | {"prompt": TEXT} | prefix, own, begins, whole | begins]


def umi_messages() -> list[dict[str, Any]]:
    whole = observe(DESCRIPTION)
    frames = np.moveaxis(whole["camera0_rgb"].astype(np.float32) / 255, -1, 1)
    message = {name: value.astype(np.float64) for name, value in whole.items()} | {"camera0_rgb": frames}
    return [message, message | {"task_name": "cup"}]


def test_openpis_messages(sentinel: str) -> None:
    with instant_core(DESCRIPTION) as (core, _), asyncio.Runner() as runner:
        client = core.open("fuzzer")
        handler = OpenpiHandler(core, client, 8)  # one connection, as though it were never closed

        def refused(message: bytes) -> bool:
            try:
                runner.run(handler.answer(message))
            except Refused as error:
                assert error.code in ("bad_request", "no_episode") and error.text
                return True
            return False

        def check() -> None:
            answer = runner.run(OpenpiHandler(core, client, 8).answer(pack(openpi_messages()[0])))
            assert unpack(answer, 2**20)["actions"].shape == (16, 10)

        bombard(fuzzing.msgpack_messages(openpi_messages(), MESSAGES, 2), refused, check)


def test_umis_pickles(sentinel: str) -> None:
    with instant_core(DESCRIPTION, instruction=TEXT) as (core, _), asyncio.Runner() as runner:
        handler = UmiHandler(core)

        def ask(message: bytes) -> np.ndarray | str:
            return plain_pickle.read(runner.run(handler.answer(message)), 2**20)

        def check() -> None:
            assert ask(plain_pickle.write(umi_messages()[0])).shape == (16, 10)

        messages = fuzzing.pickle_messages(umi_messages(), MESSAGES, 3, sentinel)
        hostile = len(fuzzing.hostile_pickles(sentinel))
        bombard(messages, lambda each: isinstance(ask(each), str), check, hostile)


def test_a_gadget_would_work_where_pickles_are_run(tmp_path: Path) -> None:
    """The test of the tests: the same bytes, given to pickle itself."""
    import pickle

    made = tmp_path / "made"
    for gadget in fuzzing.gadgets(str(made))[:6]:
        assert not made.exists()
        pickle.loads(gadget)  # noqa: S301
        assert made.exists()
        made.unlink()
