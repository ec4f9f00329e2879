"""Weights in one file and in pieces: every tensor once, and errors that name what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unified_video_action.compat.tensors import index_of, read_safetensors, weights_exist, write_safetensors

TENSORS = {f"layer.{i}.weight": torch.arange(1000.0) + i for i in range(6)} | {"count": torch.tensor(7)}


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """Path of a file that is stored in three pieces."""
    path = tmp_path / "ema.safetensors"
    write_safetensors(path, TENSORS, most_bytes=10_500)
    return path


def test_small_enough_weights_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "ema.safetensors"
    assert write_safetensors(path, TENSORS, most_bytes=30_000) == [path]
    assert load_file(path).keys() == TENSORS.keys() and weights_exist(path)


def test_pieces_are_small_named_as_usual_and_read_back_exactly(pieces: Path) -> None:
    files = sorted(path.name for path in pieces.parent.iterdir())
    assert files == [*(f"ema-0000{i}-of-00003.safetensors" for i in (1, 2, 3)), "ema.safetensors.index.json"]
    assert all(path.stat().st_size <= 10_500 for path in pieces.parent.iterdir())
    index = json.loads(index_of(pieces).read_text())
    assert index["metadata"]["total_size"] == 6 * 4000 + 8 and index["weight_map"].keys() == TENSORS.keys()
    assert weights_exist(pieces) and not weights_exist(pieces.with_name("model.safetensors"))
    read = read_safetensors(pieces)
    assert read.keys() == TENSORS.keys() and all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)


def test_a_tensor_larger_than_a_piece_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layer\.0\.weight \(1000,\) has 4000 bytes: no piece of 4000 holds it"):
        write_safetensors(tmp_path / "ema.safetensors", TENSORS, most_bytes=4000)
    assert not list(tmp_path.iterdir())


def change(index: Path, **changes: object) -> None:
    index.write_text(json.dumps(json.loads(index.read_text()) | changes))


def rewrite_second(path: Path, change: dict, without: str = "") -> None:
    piece = path.with_name("ema-00002-of-00003.safetensors")
    kept = {name: value for name, value in load_file(piece).items() if name != without}
    save_file(kept | change, piece)


SECOND = "layer.2.weight"


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (
            lambda path: path.with_name("ema-00002-of-00003.safetensors").unlink(),
            FileNotFoundError,
            r"ema-00002-of-00003\.safetensors is missing: one of the 3 pieces of ema\.safetensors\.index\.json",
        ),
        (
            lambda path: path.with_name("ema-00002-of-00003.safetensors").write_text("version https://git-lfs"),
            ValueError,
            r"ema-00002-of-00003\.safetensors is not a readable safetensors file",
        ),
        (
            lambda path: rewrite_second(path, {"layer.9.weight": torch.zeros(3)}, without=SECOND),
            ValueError,
            r"missing: layer\.2\.weight\n  extra: layer\.9\.weight",
        ),
        (
            lambda path: rewrite_second(path, {SECOND: torch.zeros(3)}),
            ValueError,
            "total_size is 24008, but the pieces hold 20020 bytes",
        ),
        (
            lambda path: save_file({"x": torch.zeros(1)}, path.with_name("ema-00001-of-00002.safetensors")),
            ValueError,
            r"does not name ema-00001-of-00002\.safetensors; remove what is out of date",
        ),
        (lambda path: save_file(TENSORS, path), ValueError, r"has both ema\.safetensors and ema\.safetensors\.index"),
        (lambda path: index_of(path).write_text("{}"), ValueError, "is no index of safetensors pieces: KeyError"),
        (
            lambda path: change(index_of(path), weight_map={"x": "../ema.safetensors"}),
            ValueError,
            r"names a piece outside its folder: \.\./ema\.safetensors",
        ),
    ],
)
def test_what_is_wrong_with_pieces_is_named(pieces: Path, damage, kind: type, message: str) -> None:
    damage(pieces)
    with pytest.raises(kind, match=message):
        read_safetensors(pieces)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file .*ema.safetensors"):
        read_safetensors(tmp_path / "ema.safetensors")
