"""kl-f16's weights: where they come from. What it computes is compared in tests/compat/test_parity.py."""

from pathlib import Path

import pytest
import torch

from unified_video_action.vae.kl import AutoencoderKL


def test_missing_weights_stop_with_path_address_and_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"vae/kl16.ckpt.*scripts/download.py kl16.*vae.weights=random"):
        AutoencoderKL()
    with pytest.raises(FileNotFoundError, match="nowhere.ckpt"):
        AutoencoderKL(weights=str(tmp_path / "nowhere.ckpt"))


def test_wrong_weights_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "kl16.ckpt"
    torch.save({"model": {"encoder.mid.block_1.conv1.weight": torch.zeros(1), "extra": torch.zeros(2)}}, path)
    with pytest.raises(
        ValueError, match=r"(?s)kl16.ckpt: 313 tensors.*missing: encoder.conv_in.*extra: extra.*misshap"
    ):
        AutoencoderKL(weights=str(path))
