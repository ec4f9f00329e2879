"""Weights in one file and in pieces: every tensor once, and errors that name what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unified_video_action.compat.tensors import (
    index_of,
    load_exactly,
    read_safetensors,
    weights_exist,
    write_safetensors,
)

TENSORS = {f"layer.{i}.weight": torch.arange(1000.0) + i for i in range(6)} | {"count": torch.tensor(7)}
SECOND, PIECE = "layer.2.weight", "ema-00002-of-00003.safetensors"


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """Path of a file that is stored in three pieces."""
    path = tmp_path / "ema.safetensors"
    write_safetensors(path, TENSORS, most_bytes=10_500)
    return path


def test_weights_are_one_file_or_small_pieces_that_are_read_back_exactly(tmp_path: Path, pieces: Path) -> None:
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [*(f"ema-0000{i}-of-00003.safetensors" for i in (1, 2, 3)), "ema.safetensors.index.json"]
    assert all(path.stat().st_size <= 10_500 for path in tmp_path.iterdir())
    index = json.loads(index_of(pieces).read_text())
    assert index["metadata"]["total_size"] == 6 * 4000 + 8 and index["weight_map"].keys() == TENSORS.keys()
    one = pieces.with_name("model.safetensors")
    assert weights_exist(pieces) and not weights_exist(one)
    assert write_safetensors(one, TENSORS, most_bytes=30_000) == [one] and weights_exist(one)
    for path in (pieces, one):
        read = read_safetensors(path)
        assert read.keys() == TENSORS.keys() and all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    with pytest.raises(ValueError, match=r"layer\.0\.weight \(1000,\) has 4000 bytes: no piece of 4000 holds it"):
        write_safetensors(tmp_path / "x.safetensors", TENSORS, most_bytes=4000)
    assert not list(tmp_path.glob("x*"))


def rewrite_second(path: Path, change: dict, without: str = "") -> None:
    piece = path.with_name(PIECE)
    kept = {name: value for name, value in load_file(piece).items() if name != without}
    save_file(kept | change, piece)


def rewrite_index(path: Path, weight_map: dict, **more: dict) -> None:
    index = json.loads(index_of(path).read_text()) | {"weight_map": weight_map} | more
    index_of(path).write_text(json.dumps(index).replace("Infinity", "1e999"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: path.with_name(PIECE).unlink(),
            f"{PIECE} is missing: one of 3 pieces of ema.safetensors.ind",
        ),
        (lambda path: path.with_name(PIECE).write_text("version https://git-lfs"), f"{PIECE}: is a Git LFS pointer"),
        (
            lambda path: rewrite_second(path, {"layer.9.weight": torch.zeros(3)}, without=SECOND),
            f"{PIECE} does not hold .*: layer.2.weight, layer.9.weight",
        ),
        (
            lambda path: save_file({"x": torch.zeros(1)}, path.with_name("ema-00001-of-00002.safetensors")),
            "does not name ema-00001-of-00002.safetensors; remove what is out of date",
        ),
        (
            lambda path: rewrite_index(path, {"a": 1, "b": PIECE}),
            "index.json is not an index of .*must say the name of",
        ),
        (
            lambda path: rewrite_index(path, {}, metadata={"total_size": float("inf")}),
            "index.json is not an index of safetensors pieces: OverflowError",
        ),
        (lambda path: rewrite_index(path, {"x": "../ema.safetensors"}), r"outside its folder: \.\./ema\.safetensors"),
    ],
)
def test_what_is_wrong_with_pieces_is_named(pieces: Path, damage, message: str) -> None:
    damage(pieces)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_safetensors(pieces)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_not_finite_are_refused_by_name(value: str) -> None:
    module = nn.Linear(2, 2)
    kept = module.bias.clone()
    state = {"weight": torch.ones(2, 2), "bias": torch.tensor([1.0, float(value)])}
    with pytest.raises(ValueError, match=rf"x\.safetensors: bias is not finite \({value}, one of 1 such values\)"):
        load_exactly(module, state, "x.safetensors")
    assert torch.equal(module.bias, kept)
