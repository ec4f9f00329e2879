"""Pickles as umi-arx's client sends them, read as data, and the words of its messages."""

import pickle
from typing import Any

import numpy as np
import pytest

from tests.compat.same import same
from unified_video_action.compat.plain_pickle import MessageReader, read, write
from unified_video_action.compat.umi_arx import instruction

KNOWN = ("put the cup on the saucer", "fold the towel", "put the mouse on the mat", "wash the cup")
FRAMES = np.random.default_rng(0).random((2, 5, 4, 3), np.float32)
MESSAGE = {
    "camera0_rgb": np.moveaxis(FRAMES, -1, 1),
    "large": np.arange(5000.0).reshape(50, 100),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    "other order": np.arange(3, dtype=">f8"),
    "numbers": [1, -2, 2**70, 0.5, True, None, np.float64(3.5), np.int32(4)],
    "nothing": np.zeros((0, 3)),
    "one": np.array(7),
    "flags": np.array([True, False]),
    "texts": ("a", "ü", {"b": ["c" * 9000]}),
    "bytes": b"abc",
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_read_in_every_protocol(protocol: int) -> None:
    data = pickle.dumps(MESSAGE, protocol)
    found = read(data, len(data))
    same(found, MESSAGE)
    same(read(memoryview(data), len(data)), MESSAGE)


@pytest.mark.parametrize("value", [np.zeros((16, 10), np.float32), np.zeros((0, 10)), "what went wrong", "ü\n" * 300])
def test_answers_can_be_unpickled_by_any_client(value: Any) -> None:
    data = write(value)
    assert b"numpy._core" not in data  # NumPy 1 has no such module
    assert data[:2] == b"\x80\x03"
    np.testing.assert_array_equal(pickle.loads(data), value)  # noqa: S301
    np.testing.assert_array_equal(read(data, len(data)), value)
    name = np.frombuffer(b"cnumpy._core.multiarray\n", np.uint8)
    np.testing.assert_array_equal(pickle.loads(write(name)), name)  # noqa: S301


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (print, "builtins.print"),
        (object(), "object|copyreg"),
        (np.array([None]), "something else than numbers"),
        (np.zeros(1, [("a", "f4")]), "something else than numbers"),
        ({1: 2}, "keys are not texts"),
        ({1, 2}, "instruction EMPTY_SET"),
    ],
)
def test_anything_else_is_refused_and_said(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(pickle.dumps({"a": value}), 10**6)


def test_a_message_is_bounded_and_ends_at_its_end() -> None:
    data = pickle.dumps(list(range(100)))
    with pytest.raises(ValueError, match=f"the most is {len(data) - 1}"):
        read(data, len(data) - 1)
    with pytest.raises(ValueError, match=f"more than {MessageReader.most} instructions"):
        read(pickle.dumps(list(range(MessageReader.most))), 10**6)
    with pytest.raises(ValueError, match="more than"):
        read(b"]" + b"\x85" * 1900 + b".", 10**6)
    assert read(pickle.dumps("good") + b"cos\nsystem\n", 10**6) == "good"


def test_a_task_name_stands_for_one_instruction() -> None:
    assert instruction({}, KNOWN) is None
    for given, chosen in (("uva_towel", KNOWN[1]), ("MOUSE arrangement", KNOWN[2]), ("wash the cup", KNOWN[3])):
        assert instruction({"task_name": given}, KNOWN) == chosen
    for given, fitting in (("cup", 2), ("shoes", 0), ("towel and mouse", 2)):
        with pytest.raises(ValueError, match=f"fits {fitting} of the instructions"):
            instruction({"task_name": given}, KNOWN)
