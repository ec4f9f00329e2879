"""Small .ckpt files that ask for much time or memory: each is refused, by name, soon and cheaply."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.compat.test_torch_archive import Call

ROOT = Path(__file__).resolve().parents[2]
SECONDS, MEGABYTES, LETTERS = 5, 500, 1500
LISTS = 600_000

# Reads each file in a fork of its own and prints what came of it: seconds, megabytes of growth, message.
READ = """
import json, os, resource, signal, sys, time
import torch
from unified_video_action.compat.torch_archive import load_checkpoint
load_checkpoint(sys.argv[1])
for path in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        before, started, said = peak(), time.perf_counter(), None
        try:
            load_checkpoint(path)
        except ValueError as error:
            said = str(error)
        print(json.dumps([path, time.perf_counter() - started, peak() - before, said]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuM\x04\x00tQ"


def nested(levels: int, tail: bytes = b".") -> bytes:
    """A tuple of the same tuple twice, and so on."""
    return b")" + b"".join(b"r%b0j%bj%b\x86" % ((struct.pack("<I", i),) * 3) for i in range(levels)) + tail


def as_argument(name: bytes) -> bytes:
    """A call whose argument has 2^60 entries."""
    return b"c" + name + b"\n" + nested(60, b"\x85R.")


COLLIDING = b"}(" + b"".join(b"\x8a\x10" + ((i * (2**61 - 1)).to_bytes(16, "little")) + b"N" for i in range(30_000))
COPIES = b"](" + b"N" * 200_000 + b"eq\x00" + b"cbuiltins\nlist\nh\x00\x85R" * 100 + b"."
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01%bcnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R\x89C\x00tb."


def repeated(made: bytes, argument: bytes, count: int) -> bytes:
    """A list of what `made` makes of the value that `argument` leaves on the stack, which it gets as number 0."""
    return argument + b"q\x000](" + made * count + b"e."


MIB = struct.pack("<I", 2**20) + b"a" * 2**20
STRIDE_0 = REBUILD + STORAGE + b"K\x00J" + struct.pack("<I", 2**22) + b"\x85K\x00\x85tR"
SCALAR = b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x06\x00\x00\x00S99999\x85Rh\x00\x86R"
EXA = b"\x8a\x08" + b"\x00" * 7 + b"\x40"  # 2^62

PICKLES = {
    "too many lists": b"](" + b"]" * LISTS + b"e.",
    "a list that doubles": b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b".",
    "nested values": nested(60),
    "nested key": b"}" + nested(60, b"K\x01s."),
    "nested entry of a set": b"\x8f(" + nested(60, b"\x90."),
    "deep value": b")" + b"\x85" * 150_000 + b".",
    "deep key": b"})" + b"\x85" * 150_000 + b"K\x01s.",
    "deep lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "two nested tuples compared": b"}(" + nested(40, nested(40, b"K\x01u.")[1:]),
    "keys with one hash": COLLIDING + b"u.",
    "copies of a list": COPIES,
    "lists of bytes": repeated(b"cbuiltins\nlist\nh\x00\x85R", b"B" + MIB, 100),
    "lists of a text": repeated(b"cbuiltins\nlist\nh\x00\x85R", b"X" + MIB, 100),
    "a list of a tensor": b"cbuiltins\nlist\n" + STRIDE_0 + b"\x85R.",
    "a dict of a tensor": b"ccollections\nOrderedDict\n" + STRIDE_0 + b"\x85R.",
    "a size of a tensor": b"ctorch\nSize\n" + STRIDE_0 + b"\x85R.",
    "scalars of one text": repeated(SCALAR, b"B" + struct.pack("<I", 99999) + b"a" * 99999, 10_000),
    "a text of 1 EiB": b"\x8d" + struct.pack("<Q", 2**60) + b"abc.",
    "bytes of 1 EiB": b"\x8e" + struct.pack("<Q", 2**60) + b"abc.",
    "a bytearray of 1 TiB": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "a frame of 1 EiB": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"abc.",
    "a number of 100 kB": b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b".",
    "a number of 100 kB in letters": b"I" + b"7" * 100_000 + b"\n.",
    "a memo's far end": b"]r\xff\xff\xff\xffj\xff\xff\xff\x7f.",
    "a nested device": as_argument(b"torch\ndevice"),
    "a nested type": as_argument(b"dill._dill\n_load_type"),
    "a nested dtype": as_argument(b"numpy\ndtype")[:-1] + b"Nb.",
    "a nested bytearray": as_argument(b"builtins\nbytearray"),
    "a nested text": as_argument(b"_codecs\nencode"),
    "a nested shape": ARRAY % nested(60, b""),
    "a large empty array": ARRAY % (b"\x8a\x08" + b"\xff" * 7 + b"\x0fK\x02\x86"),
    "a storage of 4 TB": STORAGE.replace(b"M\x04\x00", b"\x8a\x06\x00\x00\x00\x00\x00\x01") + b".",
    "a storage whose name is nested": STORAGE.replace(b"X\x01\x00\x00\x000", nested(60, b"")) + b".",
    "a storage whose kind is nested": STORAGE.replace(b"X\x07\x00\x00\x00storage", nested(60, b"")) + b".",
    "a tensor whose size is nested": REBUILD + STORAGE + b"K\x00" + nested(60, b")tR."),
    "a tensor of 2^62 x 2^62": REBUILD + STORAGE + b"K\x00" + EXA * 2 + b"\x86K\x00K\x00\x86tR.",
}  # fmt: skip


def zipped(path: Path, pickled: bytes, kind: int = zipfile.ZIP_STORED, storage: bytes = bytes(16)) -> None:
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/byteorder", b"little")
        archive.writestr("a/data/0", storage)


def legacy(path: Path, pickled: bytes) -> None:
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    stored = pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16) if STORAGE in pickled else pickle.dumps([])
    path.write_bytes(b"".join(pickle.dumps(each, 2) for each in head) + pickled + stored)


def archives(folder: Path) -> None:
    """Files whose zip, or whose tensors, are the trouble."""
    torch.save({"x": torch.ones(1).expand(6, 1000, 1000, 1000)}, folder / "24 GB of stride 0.ckpt")
    many = {str(i): torch.as_strided(torch.ones(1000), (3,), (1,)) for i in range(2)}
    whole = torch.zeros(1_000_000)
    many |= {f"view {i}": whole[i:] for i in range(300)}
    torch.save(many, folder / "overlapping views.ckpt")
    zipped(folder / "compressed lists.ckpt", b"](" + b"]" * LISTS + b"e.", zipfile.ZIP_DEFLATED)
    zipped(folder / "compressed zeros.ckpt", pickle.dumps({}), zipfile.ZIP_DEFLATED, bytes(50_000_000))
    zipped(folder / "plain.ckpt", pickle.dumps({}))
    data = bytearray((folder / "plain.ckpt").read_bytes())
    (folder / "plain.ckpt").unlink()
    first, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    encrypted, far, large = bytearray(data), bytearray(data), bytearray(data)
    encrypted[first + 8] |= 1
    (folder / "encrypted.ckpt").write_bytes(encrypted)
    far[end + 12 : end + 20] = struct.pack("<LL", 2**31, 0)
    (folder / "far directory.ckpt").write_bytes(far)
    large[first + 20 : first + 28] = struct.pack("<LL", 2**31, 2**31)
    (folder / "large entry.ckpt").write_bytes(large)
    entries = bytes(data[first:end]) * 70_000
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 60_000, 60_000, len(entries), first, 0)
    (folder / "crowded directory.ckpt").write_bytes(data[:first] + entries + tail)
    with zipfile.ZipFile(folder / "odd names.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", STORAGE.replace(b"X\x01\x00\x00\x000", b"X\x03\x00\x00\x000\x00x") + b".")
        archive.writestr("a/data/\x01\x02/../..", b"")
    torch.save({"x": Call(os.system, "true")}, folder / "a call.ckpt")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    folder = tmp_path_factory.mktemp("bombs")
    torch.save({"x": torch.ones(2)}, folder / "good")
    archives(folder)
    for name, pickled in PICKLES.items():
        zipped(folder / f"{name}.ckpt", pickled)
        legacy(folder / f"{name}, older.ckpt", pickled)
    command = [sys.executable, "-c", READ, folder / "good", *sorted(folder.glob("*.ckpt"))]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    lines = map(json.loads, ran.stdout.splitlines())
    found = {Path(path).stem: rest for path, *rest in lines}
    return {path.stem: found.get(path.stem) for path in folder.glob("*.ckpt")}


def test_each_is_refused_by_name_soon_and_cheaply(outcomes: dict[str, list]) -> None:
    assert len(outcomes) >= 2 * len(PICKLES) + 10
    wrong = {}
    for name, found in outcomes.items():
        seconds, megabytes, said = found or (None, None, "killed")
        fine = said and f"{name}.ckpt" in said and len(said) < LETTERS
        if not fine or seconds > SECONDS or megabytes > MEGABYTES:
            wrong[name] = found
    assert not wrong
