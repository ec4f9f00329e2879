"""Files of a checkpoint folder against their list, and small files within bounds."""

import json
from pathlib import Path

import pytest

from unified_video_action.compat import checkpoint_files
from unified_video_action.compat.checkpoint_files import fault, listed, read_json, verify

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "uva_pusht_small"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ema-00001-of-00002.safetensors", "codec.safetensors", "model.safetensors"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    (tmp_path / "normalizer.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("name: x")
    (tmp_path / "metrics.json").write_text(json.dumps({"files": listed(tmp_path)}))
    return tmp_path


def flip(path: Path) -> None:
    """Change one bit; JSON stays JSON."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(b"[]" if path.suffix == ".json" else data)


@pytest.mark.parametrize("name", ["ema-00001-of-00002.safetensors", "codec.safetensors", "normalizer.json"])
@pytest.mark.parametrize("manifest", ["metrics.json", "trainer_state.json"])
def test_one_bit_of_what_a_policy_reads_is_enough(folder: Path, name: str, manifest: str) -> None:
    (folder / "metrics.json").rename(folder / manifest)
    verify(folder, "ema")
    flip(folder / name)
    with pytest.raises(ValueError, match=rf"{folder.name}: {name} is damaged: .*download it again"):
        verify(folder, "ema")


def test_what_is_not_read_or_may_be_edited_is_not_verified(folder: Path) -> None:
    flip(folder / "model.safetensors")
    (folder / "config.yaml").write_text("name: y")
    verify(folder, "ema")
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        verify(folder, "model")
    (folder / "metrics.json").unlink()
    verify(folder, "model")  # of an older checkpoint, which has no list


def test_the_shipped_checkpoint_is_as_it_was_written() -> None:
    files = read_json(SHIPPED / "metrics.json")["files"]
    assert {"ema.safetensors.index.json", "ema-00001-of-00003.safetensors", "config.yaml"} < files.keys()
    assert all(entry["crc32"] for entry in files.values())
    assert fault(SHIPPED, {name: files[name] for name in files.keys() - {"config.yaml"}}) is None


@pytest.mark.parametrize("name", ["normalizer.json", "instructions.json", "metrics.json"])
@pytest.mark.parametrize(
    ("text", "said"),
    [("[" * 100_000, "nested too deeply"), ("{" + " " * 200_000 + "}", "has 200002 bytes"), ('{"a": ', "be read")],
)
def test_small_files_are_read_within_bounds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, said: str
) -> None:
    monkeypatch.setattr(checkpoint_files, "SMALL", 150_000)
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} .*{said}"):
        verify(folder, "ema")
