"""Malformed messages for the policy server, from fixed seeds: valid ones that were damaged, and hostile ones."""

from __future__ import annotations

import functools
import operator
import os
import pathlib
import pickle
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from openpi_client.msgpack_numpy import packb

from tests.compat.test_torch_archive import Call

HUGE = (2**16, 2**31 - 1, 2**32 - 1, 2**63 - 1)


def damaged(valid: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """One of some valid messages with bytes changed, cut, doubled, moved or mixed with another's."""
    data, other = (bytearray(valid[rng.integers(len(valid))]) for _ in range(2))
    head = min(max(len(data), 1), 400)  # names, types and lengths lie between arrays; most of them early
    for _ in range(rng.integers(1, 4)):
        at, some = int(rng.integers(head if rng.random() < 0.6 else max(len(data), 1))), int(rng.integers(1, 64))
        huge = struct.pack(rng.choice(["<Q", ">Q"]), HUGE[rng.integers(len(HUGE))])
        start, end, put = (
            (at, at + 1, bytes([rng.integers(256)])),
            (at, None, b""),
            (at, at + some, b""),
            (at, at, rng.bytes(some)),
            (at, at, data[at : at + 3 * some]),
            (at, at + 8, huge),
            (at, None, other[int(rng.integers(max(len(other), 1))) :]),
        )[rng.integers(7)]
        data[start:end] = put
    return bytes(data)


def junk(rng: np.random.Generator, depth: int = 0) -> Any:
    """A value that is none of those a message should have."""
    makers: list[Callable[[], Any]] = [
        lambda: None,
        lambda: bool(rng.integers(2)),
        lambda: int(rng.choice([-1, 0, 1, 255, 2**31, 2**63 - 1])),
        lambda: float(rng.choice([np.nan, np.inf, -np.inf, 0.5, 1e300])),
        lambda: "".join(chr(int(code)) for code in rng.integers(1, 0xD7FF, int(rng.integers(0, 40)))),
        lambda: "x" * int(rng.integers(1000, 5000)),
        lambda: rng.bytes(int(rng.integers(0, 200))),
        lambda: np.zeros(tuple(rng.integers(0, 5, int(rng.integers(0, 6)))), rng.choice(["u1", "f4", "f8", "i8", "?"])),
        lambda: np.full((4, 3), rng.choice([np.nan, np.inf, 1e30]), rng.choice(["f4", "f8"])),
        lambda: np.full((4, 16, 16, 3), 300.0, np.float32),
        lambda: np.zeros((4, 3), rng.choice(["<f2", ">f4", "<i2", "<U3"])),
    ]
    if depth < 3:
        makers += [
            lambda: [junk(rng, depth + 1) for _ in range(int(rng.integers(0, 4)))],
            lambda: {str(i): junk(rng, depth + 1) for i in range(int(rng.integers(0, 4)))},
        ]
    return makers[int(rng.integers(len(makers)))]()


def changed(message: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A message with a field, or one of a map in it, replaced, renamed, missing or added."""
    made = dict(message)
    for _ in range(int(rng.integers(1, 3))):
        name = rng.choice([*made, "more"]) if made else "more"
        kind = rng.integers(5)
        if kind == 0 and isinstance(made.get(name), Mapping):
            made[name] = changed(made[name], rng)
        elif kind <= 2:
            made[name] = junk(rng)
        elif kind == 3:
            made.pop(name, None)
        else:
            made[str(junk(rng))[:50]] = made.pop(name, 0)
    return made


# -- msgpack -----------------------------------------------------------------------------------------------------------


def hostile_arrays() -> list[dict[bytes, Any]]:
    """Arrays that lie about themselves."""
    types = "|O |V8 <c8 <M8[s] <U100000000 |S99999999 f4,f4 <f4\x00 O object (999999,)f8".split(" ")
    made = [{b"dtype": kind, b"shape": [1], b"data": bytes(8)} for kind in types]
    shapes = [[2**31, 2**31], [-1], [1] * 64, [2**62], [0, 2**62], [1.5], ["1"], None, "11", {}, [[1]], [True] * 2]
    made += [{b"dtype": "<f4", b"shape": shape, b"data": bytes(4)} for shape in shapes]
    made += [{b"dtype": "<f4", b"shape": [1], b"data": data} for data in ("aaaa", None, b"", bytes(5), [1], {})]
    made += [{b"dtype": kind, b"shape": [1], b"data": bytes(4)} for kind in (None, 4, b"<f4", ["<f4"])]
    made += [{}, {b"data": b""}]
    return [{b"__ndarray__": True} | each for each in made]


def hostile_messages() -> list[bytes]:
    """msgpack whose reading costs memory, time or stack where nothing bounds it."""
    deep = b"\x91" * 100_000 + b"\x00"
    wide = b"".join(b"\xdd" + struct.pack(">I", 1_000_000) for _ in range(500))  # each list claims a million entries
    maps = b"".join(b"\xdf" + struct.pack(">I", 10_000_000) for _ in range(500))
    claims = [code + struct.pack(">I", 2**32 - 1) for code in (b"\xc6", b"\xc9", b"\xdb", b"\xdd", b"\xdf")]
    crowd = b"\xdc\xff\xff" + b"\x80" * 65535  # as many empty maps as there are bytes
    tree = b"\x9f" * 4000 + b"\x80" * 60_000
    extension = [b"\xc7\x04" + bytes([code]) + b"abcd" for code in (0xFF, 0, 5, 127)] + [b"\xd6\xff" + bytes(4)]
    keys = [b"\x81\x90\x01", b"\x81\x80\x01", b"\x81\xc0\x01", b"\x81\x01\x01", b"\x82\xa1a\x01\xa1a\x01"]
    text = [b"\xa2\xff\xfe", b"\x81\xa4kind\xa2\xc3\x28", b"\xd9\xff" + b"\xed\xa0\x80" * 85]
    return [b"", b"\xc1", deep, wide, maps, crowd, tree, *claims, *extension, *keys, *text]


def msgpack_messages(valid: Sequence[Mapping[str, Any]], count: int, seed: int) -> Iterator[bytes]:
    """That many malformed messages; some of them may happen to be good."""
    rng = np.random.default_rng(seed)
    whole, special, arrays = [packb(dict(message)) for message in valid], hostile_messages(), hostile_arrays()
    for index in range(count):
        kind = index % 10
        if kind == 0:
            yield special[int(rng.integers(len(special)))]
        elif kind == 1:
            yield rng.bytes(int(rng.integers(0, 300)))
        elif kind == 2:
            message = dict(valid[int(rng.integers(len(valid)))])
            message[str(rng.choice([*message, "more"]))] = arrays[int(rng.integers(len(arrays)))]
            yield packb(message)
        elif kind <= 5:
            yield packb(changed(valid[int(rng.integers(len(valid)))], rng))
        else:
            yield damaged(whole, rng)


# -- pickle ------------------------------------------------------------------------------------------------------------


def gadgets(sentinel: str) -> list[bytes]:
    """Pickles that make the file `sentinel`, or do other harm, where they are run; the first six make it."""
    touch, system = f"open({sentinel!r}, 'w').close()", Call(os.system, f"touch {sentinel}")
    calls = [
        system,
        Call(eval, touch),
        Call(exec, touch),
        Call(open, sentinel, "w"),
        Call(subprocess.check_output, ["touch", sentinel]),
        Call(pathlib.Path.touch, pathlib.Path(sentinel)),
        Call(getattr, Call(__import__, "os"), "system"),
        Call(functools.partial(os.system, f"touch {sentinel}")),
        Call(operator.methodcaller("system", f"touch {sentinel}"), Call(__import__, "os")),
        Call(np.load, sentinel, None, True),
        Call(np.fromfile, sentinel),
        Call(np.save, sentinel + ".npy", np.zeros(1)),
        Call(np.array, system),
        Call(bytearray, 2**40),
        Call(np.zeros, 2**40),
        Call(pickle.loads, pickle.dumps(system)),
        np.array([system], dtype=object),
        np.zeros(2, "M8[s]"),
        np.zeros(2, [("a", "f4")]),
        {(1, 2): 3},
        {"a": {1, 2}},
        1j,
        print,
        Call(dict, [("camera0_rgb", system)]),
    ]
    made = [pickle.dumps(each, 4) for each in calls]
    made += [pickle.dumps(each, protocol) for each in calls[:6] for protocol in (0, 2, 5)]
    made += [pickle.dumps({"camera0_rgb": each, "task_name": each}, 4) for each in calls]
    run = f"touch {sentinel}".encode()
    return made + [
        b"cos\nsystem\n(V" + run + b"\ntR.",
        b"(S'" + run + b"'\nios\nsystem\n.",
        b"(cos\nsystem\nV" + run + b"\no.",
        b"c__builtin__\neval\n(V" + touch.encode() + b"\ntR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(run)]) + run + b"\x85R.",
        b"\x80\x02cos\nsystem\n\x81.",
        b"\x80\x02cnumpy\nndarray\n)\x81}b.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\nI0\nV" + run + b"\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\nI0\nI1\ntRVx\ntR.",
        b"cnumpy.core.numeric\n_frombuffer\n(Vx\ncnumpy\ndtype\n(VO8\ntR(I1\ntVC\ntR.",
        *(b"}(V__class__\ncos\nsystem\nu.", b"}V__reduce__\nVx\nsb.", b"}}b.", b"\x82\x01.", b"Pid\n.", b"Vid\nQ."),
    ]


def pickle_bombs() -> list[bytes]:
    """Pickles whose reading costs memory, time or stack where nothing bounds it."""
    return [
        b"", b".", b"\x80", b"\x80\x7f.", b"N", b"(" * 30_000, b"]" * 100_000 + b".",
        b"]" + b"\x85" * 15_000 + b".",  # a tuple in a tuple in ...
        b"}]" + b"\x85" * 15_000 + b"Ns.",  # which is to be a key
        b"]\x94" + b"(h\x00h\x00t\x94" * 5_000 + b".",
        b"]" + b"\x94".join(b"(h\x00h\x00t" for _ in range(200)) + b".",
        b"]\x94h\x00a.", b"}\x94Vx\nh\x00s.",  # containers that hold themselves
        b"Nr\xff\xff\xff\x7f.", b"N" + b"p99999999999999999999\n.",  # far entries of the memo
        b"\x8e" + struct.pack("<Q", 2**62), b"X" + struct.pack("<I", 2**32 - 1), b"T" + struct.pack("<i", -5),
        b"\x8b" + struct.pack("<i", 2**31 - 1), b"\x8b" + struct.pack("<i", -1), b"\x8a\xff",
        b"\x95" + struct.pack("<Q", 2**62) + b"N.", b"I" + b"9" * 20_000 + b"\n.", b"F1e999\n.",
        b"V\\ud800\n.", b"S'\\x", b"h\x05.", b"2.", b"a.", b"s.", b"u.", b"t.", b"e.", b"R.", b"b.",
        b"\x93.", b"NN\x93.", b"c\n\n.", b"cnumpy\n.", b"NNs.", b"(NNNd.", b"(d(Nu.", b"]Nb.",
        b"cnumpy\ndtype\n(Vf4\ntR(I1\nV>\nNNNtb.",
        b"cnumpy\ndtype\n(Vf4\ntR" * 3_000 + b".",
    ]  # fmt: skip


def array_pickles() -> list[bytes]:
    """Arrays that lie about themselves, in a message."""

    def array(shape: bytes, kind: bytes, data: bytes) -> bytes:
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
            b"(I1\n" + shape + b"cnumpy\ndtype\n(V" + kind + b"\nI0\nI1\ntRI00\n" + data + b"tb"
        )  # fmt: skip

    good, four = b"(I1\nt", b"C\x04\x00\x00\x00\x00"
    shapes = [b"(I-1\nt", b"(I99999999999\nt", b"(I0\nI99999999999\nt", b"N", b"(Vx\nt", b"(" + b"I1\n" * 70 + b"t"]
    kinds = [b"O", b"V4", b"S4", b"U1", b"M8[s]", b"f4,f4", b"c8", b"(99999999,)f4", b"f3", b"", b"f4\\u0000"]
    values = [b"N", b"Vabcd\n", b"]", b"C\x05\x00\x00\x00\x00\x00", b"C\x00"]
    made = [array(shape, b"f4", four) for shape in shapes]
    made += [array(good, kind, four) for kind in kinds] + [array(good, b"f4", value) for value in values]
    return [b"}Vrobot0_eef_pos\n" + each + b"s." for each in made]


def hostile_pickles(sentinel: str) -> list[bytes]:
    return [*gadgets(sentinel), *pickle_bombs(), *array_pickles()]


def pickle_messages(valid: Sequence[Mapping[str, Any]], count: int, seed: int, sentinel: str) -> Iterator[bytes]:
    """As `msgpack_messages`, the hostile ones first."""
    rng = np.random.default_rng(seed)
    whole = [pickle.dumps(dict(message), protocol) for message in valid for protocol in range(2, 6)]
    special = hostile_pickles(sentinel)
    for index in range(count):
        kind = index % 10
        if index < len(special):
            yield special[index]
        elif kind == 0:
            yield special[int(rng.integers(len(special)))]
        elif kind == 1:
            yield rng.bytes(int(rng.integers(0, 300)))
        elif kind == 2:
            yield damaged([special[int(rng.integers(len(special)))]], rng)
        elif kind <= 5:
            yield pickle.dumps(changed(valid[int(rng.integers(len(valid)))], rng), int(rng.integers(2, 6)))
        else:
            yield damaged(whole, rng)
