"""The packaged codec on rendered and on human demonstrations, and the script that fits it."""

import json

import numpy as np
import pytest
import torch

from scripts.train_codec import fit, images_of, main, measure, to_images
from unified_video_action.env.pusht.renderer import render_states
from unified_video_action.spec import LatentShape
from unified_video_action.vae.pusht_tiny import PACKAGED_WEIGHTS, PushTTiny

MOST_BYTES = 6_000_000
LEAST_PSNR = 34.0  # dB
GOAL = (256.0, 256.0, np.pi / 4)
AGENT_BLUE = torch.tensor([65, 105, 225]) / 127.5 - 1


@pytest.fixture(scope="module")
def codec() -> PushTTiny:
    return PushTTiny()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Frames (100, 3, 96, 96) of states all over the table."""
    low, high = (40, 40, 120, 120, -np.pi), (470, 470, 390, 390, np.pi)
    return to_images(render_states(np.random.default_rng(3).uniform(low, high, size=(100, 5)), GOAL, 96))


def test_packaged_weights_are_small_and_make_the_documented_latents(codec):
    assert PACKAGED_WEIGHTS.stat().st_size <= MOST_BYTES
    assert codec.latent_shape == LatentShape(128, 6, 6)
    latents = codec.encode(torch.zeros(2, 3, 3, 96, 96, dtype=torch.uint8))
    assert latents.shape == (2, 3, 128, 6, 6) and latents.dtype == torch.float32
    assert codec.decode(latents).shape == (2, 3, 3, 96, 96)


def test_human_demonstrations_come_back(codec, pusht_zip):
    figures = measure(codec, torch.cat(list(images_of(pusht_zip, held_out=True))))
    assert figures["psnr"] >= LEAST_PSNR and figures["psnr_lowest_frame"] >= LEAST_PSNR - 1


def test_rendered_frames_come_back_with_the_agent_in_its_place(codec, images):
    decoded = codec.decode(codec.encode(images[:, None]))[:, 0]
    assert measure(codec, images)["psnr"] >= LEAST_PSNR

    def agent_centre(of: torch.Tensor) -> torch.Tensor:
        """Centre of the blue in each of (N, 3, 96, 96), in pixels: (N, 2)."""
        weight = torch.relu(1 - 3 * (of - AGENT_BLUE.view(3, 1, 1)).abs().mean(1))  # (N, 96, 96)
        axis, total = torch.arange(96.0), weight.sum((1, 2))
        return torch.stack([(weight.sum(1) * axis).sum(1) / total, (weight.sum(2) * axis).sum(1) / total], 1)

    assert (agent_centre(decoded) - agent_centre(images)).norm(dim=1).median() < 0.35  # pixels


def test_latents_have_variance_one_and_the_strongest_channels_first(codec, images):
    latents = codec.encode(images[:, None])
    assert latents.std() == pytest.approx(1, abs=0.2) and latents.mean().abs() < 0.1
    assert (latents.abs() > 4).float().mean() < 0.03
    deviations = latents.std((0, 1, 3, 4))
    assert deviations[:8].mean() > 3 * deviations[-8:].mean()


def test_fitting_finds_the_components_and_does_not_depend_on_the_parts(images):
    whole, parts = fit(iter([images])), fit(iter(images.split(17)))
    assert torch.allclose(whole.components, parts.components, atol=1e-3)
    gram = whole.components @ whole.components.T
    assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-4)
    assert measure(whole, images)["psnr"] > measure(PushTTiny("random"), images)["psnr"] + 10


def test_the_script_writes_weights_and_figures(pusht_store, tmp_path, monkeypatch):
    monkeypatch.delenv("UVA_DATA_DIR", raising=False)
    main(["--demos", str(pusht_store), "--output", str(tmp_path / "new" / "codec.safetensors")])
    figures = json.loads((tmp_path / "new" / "codec.json").read_text())
    assert figures[pusht_store.name]["psnr"] > 0
    PushTTiny(str(tmp_path / "new" / "codec.safetensors"))
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name.startswith(".")] == []


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        PushTTiny(str(tmp_path / "nowhere.safetensors"))
