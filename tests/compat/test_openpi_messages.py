"""Messages as openpi's own package writes and reads them, and openpi's names."""

from typing import Any

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy

from tests.compat.same import same
from unified_video_action.compat.openpi_messages import observations, pack, unpack

MESSAGES = {
    "nothing": None,
    "plain": {"a": [1, 2.5, "text", b"bytes", None, True], "b": {"c": []}},
    "frames": {"image": np.arange(48, dtype=np.uint8).reshape(4, 4, 3)},
    "states": {"state": np.linspace(0, 1, 8), "more": np.float32([[1, 2], [3, 4]])},
    "not contiguous": {"a": np.arange(12).reshape(3, 4).T, "b": np.arange(10)[::3]},
    "no numbers": {"a": np.zeros((0, 3)), "b": np.zeros((2, 0), np.uint8)},
    "one number": {"a": np.array(3.5), "b": np.float32(2), "c": np.int64(-7), "d": np.bool_(True)},
    "other types": {"a": np.array([True]), "b": np.float16([1]), "c": np.array([1], ">f4"), "d": np.uint64([2**63])},
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_byte_for_byte_those_of_openpi(name: str) -> None:
    data = msgpack_numpy.packb(MESSAGES[name])
    assert pack(MESSAGES[name]) == data
    same(unpack(data, len(data)), msgpack_numpy.unpackb(data))


def array(**changes: Any) -> bytes:
    fields = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    return msgpack.packb({"a": fields | {key.encode(): value for key, value in changes.items()}})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (array(dtype="|O"), "expected numbers"),
        (array(shape=[3]), "with 8 bytes of data"),
        (array(shape=[2**40, 2**40]), "whole numbers"),
        (array(shape=[1] * 9), "at most 8 dimensions"),
        (msgpack.packb([{}] * 100 + [[[]] * 100] * 2), "more than 256 maps and lists"),
        (msgpack.packb([0] * 200), "list of more than 128 entries; send frames and states as arrays"),
        (b"\xdf\x7f\xff\xff\xff", "exceeds max_map_len"),
        (b"\x91" * 5000, "damaged"),
        (bytes(1001), "the most is 1000"),
    ],
)
def test_what_is_damaged_or_hostile_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        unpack(data, 1000 if len(data) == 1001 else 10_000)


def test_openpis_names_stand_for_a_policys_own() -> None:
    image, wrist, state = np.zeros(1), np.ones(1), np.arange(5.0)
    views = {"observation/image": image, "observation/wrist_image": wrist}
    message = {**views, "observation/state": state, "prompt": "fold", "observation/elbow": 1}
    found, unknown = observations(message, ("front", "side"), {"position": 3, "gripper": 2})
    assert found["front"] == ("observation/image", image) and found["side"] == ("observation/wrist_image", wrist)
    assert found["position"][1].tolist() == [0, 1, 2] and found["gripper"][1].tolist() == [3, 4]
    assert unknown == ["observation/elbow"]
    found, unknown = observations(message, ("front",), {})
    assert set(found) == {"front"} and unknown == ["observation/elbow"]  # a view or a state that it does not read
    own = {"front": wrist, "observation/gripper": state[:2]}
    for both in (message | own, own | message):
        found, _ = observations(both, ("front", "side"), {"position": 3, "gripper": 2})
        assert found["front"] == ("front", wrist) and found["gripper"][1].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"array \(8,\); expected 5 numbers: position \(3\), gripper \(2\)"):
        observations({"observation/state": np.zeros(8)}, (), {"position": 3, "gripper": 2})
