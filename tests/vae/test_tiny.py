"""TAEF2 with its public weights, on real frames."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unified_video_action.vae.tiny import TAEF2, read_weights


@pytest.fixture(scope="module")
def weights(data_dir: Path) -> str:
    path = data_dir / "vae" / "taef2"
    if not path.is_dir():
        pytest.skip(f"{path} is missing: no TAEF2 weights")
    return str(path)


@pytest.fixture(scope="module")
def frames(data_dir: Path) -> Tensor:
    """(24, 1, 3, 96, 96) uint8, spread over the PushT demonstrations."""
    import zarr

    path = data_dir / "pusht" / "pusht_cchi_v7_replay_uint8.zarr.zip"
    if not path.is_file():
        pytest.skip(f"{path} is missing: no real PushT frames")
    images = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")["data/img"]
    chosen = [images[int(index)] for index in np.linspace(0, images.shape[0] - 1, 24)]
    return torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2).unsqueeze(1)


def test_frames_come_back_from_latents_of_about_unit_deviation(weights: str, frames: Tensor) -> None:
    codec = TAEF2(weights)
    latents = codec.encode(frames)
    assert latents.shape == (24, 1, 32, 12, 12) and latents.std() == pytest.approx(1, abs=0.1)
    assert latents.mean((0, 1, 3, 4)).abs().max() < 0.25
    squared_error = ((codec.decode(latents) - (frames.float() / 127.5 - 1)) / 2).square().mean()
    assert -10 * torch.log10(squared_error) == pytest.approx(33, abs=0.7)
    sampled = TAEF2(weights, posterior="sample").encode(frames[:2], torch.Generator().manual_seed(0))
    torch.testing.assert_close(sampled, latents[:2], atol=1e-5, rtol=1e-5)  # there is no posterior


def test_the_hub_layout_is_the_same_network(weights: str, tmp_path: Path) -> None:
    hub = {}
    for name, tensor in read_weights(Path(weights)).items():
        part, index, rest = name.split(".", 2)
        hub[f"{part}.layers.{int(index) - (part == 'decoder')}.{rest}"] = tensor
    save_file(hub, tmp_path / "taef2.safetensors")
    codec = TAEF2(str(tmp_path / "taef2.safetensors"))
    assert codec.key() == TAEF2(weights).key()
    codec.save(tmp_path / "saved.safetensors")
    assert TAEF2(str(tmp_path / "saved.safetensors")).key() == codec.key()


def test_missing_and_damaged_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(side_effect=OSError("no connection")))
    with pytest.raises(FileNotFoundError, match=r"no weights for the taef2 codec.*vae.weights=PATH"):
        TAEF2()
    with pytest.raises(FileNotFoundError, match=r"nowhere.*scripts/download.py taef2.*vae.weights=PATH"):
        TAEF2(str(tmp_path / "nowhere"))
    damaged = tmp_path / "taef2.safetensors"
    damaged.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="taef2.safetensors is not a readable safetensors file"):
        TAEF2(str(damaged))
    with pytest.raises(FileNotFoundError, match="taef2_encoder.safetensors"):
        TAEF2(str(tmp_path))
