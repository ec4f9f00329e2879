"""Foreign checkpoints are read as data; whatever would run is refused and named.

`dill_zip.ckpt` and `dill_legacy.ckpt` were written by torch.save with dill as its pickle module, in both formats.
"""

import argparse
import builtins
import collections
import functools
import operator
import os
import pickle
import subprocess
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unified_video_action.compat.pickle_reader import UnsafePickleError, reading
from unified_video_action.compat.torch_archive import CheckpointReader, load_checkpoint

HERE = Path(__file__).parent


def loads(data: bytes) -> Any:
    """What a checkpoint's pickle holds."""
    with reading("pickle"):
        return CheckpointReader(BytesIO(data)).content()


@pytest.mark.parametrize("name", ["dill_zip.ckpt", "dill_legacy.ckpt"])
def test_a_dill_checkpoint_comes_back_as_plain_data(name: str) -> None:
    content = load_checkpoint(HERE / name)
    image = {"image": {"shape": [3, 96, 96], "type": "rgb"}}
    policy = {"n_action_steps": 8, "shape_meta": "${task.shape_meta}", "different_history_freq": None}
    assert content["cfg"] == {
        "name": "uva",
        "task": {"name": "pusht", "shape_meta": {"obs": image, "action": {"shape": [2]}}},
        "model": {"policy": policy | {"optimizer": {"learning_rate": 1e-4, "betas": [0.9, 0.95]}}},
        "unset": "???",
    }
    weights = content["state_dicts"]["ema_model"]
    assert torch.equal(weights["weight"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(weights["transposed"], torch.arange(6.0).reshape(2, 3).T)
    assert torch.equal(weights["bias"], torch.tensor([1, -1], dtype=torch.float16))
    assert torch.equal(weights["flag"], torch.tensor([1.5], dtype=torch.bfloat16))
    assert weights["count"] == 7 and weights["count"].dtype == torch.int64
    assert content["state_dicts"]["optimizer"]["state"][0]["exp_avg"].shape == (2, 3)
    assert content["scalar"] == 2.5
    np.testing.assert_array_equal(content["array"], np.arange(6.0).reshape(2, 3))
    if "zip" in name:
        assert loads(content["pickles"]["global_step"]) == 12
        np.testing.assert_array_equal(loads(content["pickles"]["array"]), np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read_bit_for_bit(tmp_path: Path, zipped: bool) -> None:
    shared = torch.randn(10, generator=torch.Generator().manual_seed(0))
    saved = {
        "view": shared[2:8].reshape(2, 3),
        "shared": shared,
        "expanded": torch.ones(1).expand(4, 5),
        "empty": torch.zeros(0, 3),
        "bools": torch.tensor([True, False]),
        "args": argparse.Namespace(lr=0.1, name="x"),
        "ordered": collections.OrderedDict(a=1),
        "counts": collections.defaultdict(int, b=2),
        "nested": [(1, 2), {3}, None, 1.5, "text", b"bytes", 2**70, torch.float32, torch.Size([1, 2])],
    }
    torch.save(saved, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    content = load_checkpoint(tmp_path / "x.pt")
    for name in ("view", "shared", "expanded", "empty", "bools"):
        assert torch.equal(content[name], saved[name]), name
    assert content["args"] == {"lr": 0.1, "name": "x"}
    assert content["ordered"] == {"a": 1} and content["counts"] == {"b": 2}
    assert content["nested"] == [(1, 2), {3}, None, 1.5, "text", b"bytes", 2**70, torch.float32, (1, 2)]


class Call:
    """Pickles to a call of `function` with `arguments`, as an attacker would write it."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.reduced

    def __call__(self) -> None:
        """Only because pickle writes no call of what is not callable."""


def hostile(marker: Path) -> dict[str, Any]:
    """Name that is refused -> object whose unpickling would create `marker`, or could."""
    touch, imported_os = f"open({str(marker)!r}, 'w')", Call(builtins.__import__, "os")
    return {
        "posix.system": Call(os.system, f"touch {marker}"),
        "builtins.eval": Call(eval, touch),
        "io.open": Call(open, str(marker), "w"),
        "builtins.__import__": Call(builtins.__import__, "os"),
        "builtins.getattr": Call(Call(getattr, imported_os, "system"), f"touch {marker}"),
        "functools.partial": Call(Call(functools.partial, os.system), f"touch {marker}"),
        "operator.attrgetter": Call(Call(operator.attrgetter, "system"), imported_os),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "torch.serialization.load": Call(torch.load, str(marker)),
        "a call of builtins.type": Call(type, "Made", (), {}),
        "an array of something else than numbers": np.array([{}, []], dtype=object),
        "state set on a list": Call(list, state={"x": 1}),
    }


@pytest.mark.parametrize("what", hostile(Path("marker")))
@pytest.mark.parametrize("where", ["bytes", "zip", "legacy"])
def test_a_hostile_pickle_is_refused_and_named(tmp_path: Path, what: str, where: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "hostile.ckpt"
    content = {"state_dicts": {"model": {}}, "cfg": hostile(marker)[what]}
    with pytest.raises(UnsafePickleError) as caught:
        if where == "bytes":
            loads(pickle.dumps(content))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=where == "zip")
            load_checkpoint(path)
    assert caught.value.what == what and what in str(caught.value)
    assert where == "bytes" or path.name in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("stream", "what"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "pickle instruction INST"),
        (b"\x80\x04\x8c\x0aomegaconf.\x8c\x09OmegaConf\x93.", "omegaconf..OmegaConf"),
        (b"\x80\x04\x8c\x0adill._dill\x8c\x10_create_function\x93.", "dill._dill._create_function"),
        (b"\x80\x05\x97.", "pickle instruction NEXT_BUFFER"),
        (b"\x80\x02K\x01Q.", "a reference to data outside the pickle"),
    ],
)
def test_instructions_that_plain_data_does_not_need_are_refused(stream: bytes, what: str) -> None:
    with pytest.raises(UnsafePickleError) as caught:
        loads(stream)
    assert caught.value.what == what


def test_a_tensor_cannot_reach_outside_its_storage() -> None:
    view, storage = CheckpointReader(BytesIO()).view, torch.arange(6.0)
    assert torch.equal(view(storage, 1, (2, 2), (2, 1), False, {}), torch.tensor([[1.0, 2], [3, 4]]))
    outside = (0, (7,), (1,)), (4, (2, 2), (2, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2,), ())
    for offset, size, stride in outside:
        with pytest.raises(ValueError, match="a tensor"):
            view(storage, offset, size, stride, False, {})


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_named(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save({"x": torch.arange(1000.0)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-1], b"", b"not a checkpoint", whole[:4]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="weights.ckpt"):
            load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="nowhere.ckpt"):
        load_checkpoint(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("name", ["dill_zip.ckpt", "dill_legacy.ckpt"])
def test_whatever_the_damage_it_is_a_value_error(tmp_path: Path, name: str) -> None:
    whole, random, refused = (HERE / name).read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        data = bytearray(whole)
        for index in random.integers(len(data), size=random.integers(1, 5)):
            data[index] = random.integers(256)
        (tmp_path / name).write_bytes(data)
        try:
            load_checkpoint(tmp_path / name)
        except ValueError:
            refused += 1
    assert refused > 100  # the other changes hit numbers and padding


@pytest.mark.parametrize("how", ["shorter", "missing", "compressed"])
def test_a_zip_whose_storage_is_not_what_the_pickle_says_is_refused(tmp_path: Path, how: str) -> None:
    path, changed = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    torch.save({"x": torch.arange(100.0)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            data, is_storage = old.read(name), name.endswith("data/0")
            if not (is_storage and how == "missing"):
                kind = zipfile.ZIP_DEFLATED if is_storage and how == "compressed" else zipfile.ZIP_STORED
                new.writestr(name, data[:-4] if is_storage and how == "shorter" else data, kind)
    with pytest.raises(ValueError, match=r"b.ckpt: .*(storage|entry) .*0"):
        load_checkpoint(changed)
