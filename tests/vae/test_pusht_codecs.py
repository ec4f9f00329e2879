"""The packaged codecs on rendered and on human demonstrations, and the script that fits them."""

import json

import numpy as np
import pytest
import torch

from scripts.train_codec import images_of, main
from unified_video_action.env.pusht.env import render_states
from unified_video_action.vae.base import FrameCodec
from unified_video_action.vae.fitting import fit_mlp, measure, to_images
from unified_video_action.vae.patch_mlp import PatchMLP
from unified_video_action.vae.pusht_tiny import PushTTiny

LEAST_PSNR = {PushTTiny: 34.0, PatchMLP: 33.0}  # dB
GOAL = (256.0, 256.0, np.pi / 4)
AGENT_BLUE = torch.tensor([65, 105, 225]) / 127.5 - 1


@pytest.fixture(scope="module", params=[PushTTiny, PatchMLP])
def codec(request) -> FrameCodec:
    return request.param()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Frames (100, 3, 96, 96) of states all over the table."""
    low, high = (40, 40, 120, 120, -np.pi), (470, 470, 390, 390, np.pi)
    return to_images(render_states(np.random.default_rng(3).uniform(low, high, size=(100, 5)), GOAL, 96))


@pytest.fixture(scope="module")
def human_images(pusht_zip) -> torch.Tensor:
    return torch.cat(list(images_of(pusht_zip, held_out=True, most=300)))


def test_human_demonstrations_come_back(codec, human_images):
    figures = measure(codec, human_images)
    least = LEAST_PSNR[type(codec)]
    assert figures["psnr"] >= least and figures["psnr_lowest_frame"] >= least - 2


def test_rendered_frames_come_back_with_the_agent_in_its_place(codec, images):
    assert measure(codec, images)["psnr"] >= LEAST_PSNR[type(codec)]
    latents = codec.encode(images[:, None])
    assert latents.std() == pytest.approx(1, abs=0.2) and latents.mean().abs() < 0.2
    assert (latents.abs() > 4).float().mean() < 0.03

    def agent_centre(of: torch.Tensor) -> torch.Tensor:
        """Centre of the blue in each of (N, 3, 96, 96), in pixels: (N, 2)."""
        # (N, 96, 96), 0 for the block's grey as well where that comes back a little bluer
        weight = torch.relu(1 - 4 * (of - AGENT_BLUE.view(3, 1, 1)).abs().mean(1))
        axis, total = torch.arange(96.0), weight.sum((1, 2))
        return torch.stack([(weight.sum(1) * axis).sum(1) / total, (weight.sum(2) * axis).sum(1) / total], 1)

    decoded = codec.decode(latents)[:, 0]
    assert (agent_centre(decoded) - agent_centre(images)).norm(dim=1).median() < 0.35  # pixels


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_script_writes_weights_and_figures(kind, pusht_store, tmp_path, monkeypatch):
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path))
    options = ["--kind", kind, "--minutes", "0.02", "--batch", "32"]
    main([*options, "--demos", str(pusht_store), "--output", str(tmp_path / "new" / "codec.safetensors")])
    figures = json.loads((tmp_path / "new" / "codec.json").read_text())
    assert figures[pusht_store.name]["psnr"] > 0
    {"linear": PushTTiny, "mlp": PatchMLP}[kind](str(tmp_path / "new" / "codec.safetensors"))
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name.startswith(".")] == []


def test_frames_in_which_no_patch_is_common_are_fitted_as_well():
    images = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codec = fit_mlp(iter([images]), minutes=10, device="cpu", batch=16, most_steps=3)
    assert np.isfinite(list(measure(codec, images).values())).all()
