"""The packaged codec on rendered and on human demonstrations, and the script that trains it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.train_codec import Trainer, crop_to_shapes, load, main, measure, render, start_from_principal_components
from unified_video_action.spec import LatentShape
from unified_video_action.vae.pusht_tiny import NOISE, PACKAGED_WEIGHTS, PushTTiny

MOST_BYTES = 6_000_000
LEAST_PSNR = 34.0  # dB
AGENT_BLUE = torch.tensor([65, 105, 225]) / 127.5 - 1


@pytest.fixture(scope="module")
def codec() -> PushTTiny:
    return PushTTiny()


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    """States (200, 5) all over the table."""
    rng = np.random.default_rng(3)
    low, high = (40, 40, 120, 120, -np.pi), (470, 470, 390, 390, np.pi)
    return rng.uniform(low, high, size=(200, 5)).astype(np.float32)


@pytest.fixture(scope="module", params=[0.0, 1.0], ids=["default-goal", "random-goal"])
def scenes(states, request):
    return render(states, 100, np.random.default_rng(4), random_goals=request.param)


def test_packaged_weights_are_small_and_make_the_documented_latents(codec):
    assert PACKAGED_WEIGHTS.stat().st_size <= MOST_BYTES
    assert codec.latent_shape == LatentShape(16, 12, 12)
    latents = codec.encode(torch.zeros(2, 3, 3, 96, 96, dtype=torch.uint8))
    assert latents.shape == (2, 3, 16, 12, 12) and latents.dtype == torch.float32
    assert codec.decode(latents).shape == (2, 3, 3, 96, 96)


def test_rendered_frames_come_back(codec, scenes):
    figures = measure(codec, scenes)
    assert figures["psnr"] >= LEAST_PSNR
    assert figures["psnr_lowest_frame"] >= LEAST_PSNR - 3
    assert min(figures["psnr_block"], figures["psnr_agent"]) >= 22
    assert figures["psnr_with_noise_0.1"] >= figures["psnr"] - 2


def test_human_demonstrations_come_back(codec, pusht_zip):
    figures = measure(codec, load(pusht_zip, 100))
    assert figures["psnr"] >= LEAST_PSNR
    assert figures["psnr_lowest_frame"] >= LEAST_PSNR - 3


def test_latents_are_normalised(codec, scenes):
    latents = codec.encode(scenes.images()[:, None])
    assert latents.mean().abs() < 0.1
    assert latents.mean((0, 1, 3, 4)).abs().max() < 0.3
    deviations = latents.std((0, 1, 3, 4))
    assert deviations.min() > 0.75 and deviations.max() < 1.3
    assert (latents.abs() > 4).float().mean() < 0.01


def test_the_agent_comes_back_in_its_place(codec, scenes):
    def centre(images: torch.Tensor) -> torch.Tensor:
        """Centre of the blue in each of (N, 3, 96, 96), in pixels: (N, 2)."""
        weight = torch.relu(1 - 3 * (images - AGENT_BLUE.view(3, 1, 1)).abs().mean(1))  # (N, 96, 96)
        axis = torch.arange(96.0)
        total = weight.sum((1, 2))
        return torch.stack([(weight.sum(1) * axis).sum(1) / total, (weight.sum(2) * axis).sum(1) / total], 1)

    images = scenes.images()
    decoded = codec.decode(codec.encode(images[:, None]))[:, 0]
    assert (centre(decoded) - centre(images)).norm(dim=1).median() < 0.15


def test_posterior_has_the_documented_width(scenes):
    images = scenes.images()[:4, None]
    mean = PushTTiny().encode(images)
    sample = PushTTiny(posterior="sample").encode(images, torch.Generator().manual_seed(0))
    assert (sample - mean).std().item() == pytest.approx(NOISE, rel=0.05)
    assert torch.equal(PushTTiny().encode(images), mean)


def test_weights_survive_saving_and_name_the_latents(codec, tmp_path):
    codec.save(tmp_path / "copy.safetensors")
    copy = PushTTiny(str(tmp_path / "copy.safetensors"))
    assert copy.key() == codec.key()
    assert torch.equal(copy.scale, codec.scale) and not torch.equal(codec.scale, torch.ones_like(codec.scale))
    assert PushTTiny("random").key() != codec.key()


def test_stays_frozen(codec):
    assert not codec.train().training
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_missing_weights_name_the_file_and_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.safetensors.*train_codec.py"):
        PushTTiny(str(tmp_path / "absent.safetensors"))


def test_training_lowers_the_error(scenes):
    torch.manual_seed(0)
    codec = PushTTiny("random")
    images = scenes.images()[:16]
    start_from_principal_components(codec, images)
    trainer = Trainer(codec, learning_rate=2e-3, precision="fp32")
    assert crop_to_shapes(images).shape == (16, 3, 48, 48)
    errors = [trainer.step(images, done=0.9) for _ in range(25)]
    assert np.mean(errors[-3:]) < 0.8 * np.mean(errors[:3])


def test_script_writes_weights_and_figures_reproducibly(tmp_path: Path, pusht_store, monkeypatch):
    monkeypatch.delenv("UVA_DATA_DIR", raising=False)
    sizes = ["--steps", "7", "--rendered", "50", "--measured", "10", "--precision", "fp32"]
    keys = []
    for name in ("first", "second"):
        output = tmp_path / f"{name}.safetensors"
        main(["--demos", str(pusht_store), "--output", str(output), *sizes])
        keys.append(PushTTiny(str(output)).key())
    assert keys[0] == keys[1]
    assert output.stat().st_size <= MOST_BYTES

    before = json.loads(output.with_suffix(".json").read_text())
    assert set(before["measured"]) == {"rendered", "rendered_random_goal"}
    main(["--demos", str(pusht_store), "--output", str(output), *sizes, "--resume"])
    after = json.loads(output.with_suffix(".json").read_text())
    assert PushTTiny(str(output)).key() != keys[0]
    assert after["measured"]["rendered"]["psnr"] > before["measured"]["rendered"]["psnr"]
