"""Fit the project's own frame codec, `pusht_tiny`, on scripted demonstrations, and measure it.

python scripts/collect_demos.py --task pusht -n 80 --seed 1 --output demos.zarr.zip
python scripts/collect_demos.py --task pusht -n 80 --seed 1 --goal random --output demos_m.zarr.zip
python scripts/train_codec.py --demos demos.zarr.zip demos_m.zarr.zip --output weights.safetensors

The principal components of all patches of all frames: a closed form, so the same demonstrations give the same weights.
When UVA_DATA_DIR is set the result is also measured on human demonstrations, which are never fitted. The figures go to
a JSON file beside the weights.
"""

import argparse
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import unfold
from tqdm import tqdm

from unified_video_action.dataset.replay_buffer import ReplayBuffer
from unified_video_action.vae.pusht_tiny import CHANNELS, PATCH, PushTTiny

log = logging.getLogger("train_codec")
FRAMES_AT_A_TIME = 500


def to_images(frames: np.ndarray) -> Tensor:
    """uint8 (N, S, S, 3) -> float (N, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def images_of(location: str | Path, held_out: bool) -> Iterator[Tensor]:
    """Images (N, 3, S, S) of a store of episodes, in parts: every tenth frame if held out, else the others."""
    store = ReplayBuffer(location, images=["img"], vectors=[])
    rows = np.arange(len(store))
    rows = rows[(rows % 10 == 0) == held_out]
    for start in tqdm(range(0, len(rows), FRAMES_AT_A_TIME), desc=Path(location).name, unit="part"):
        yield to_images(store.frames("img", rows[start : start + FRAMES_AT_A_TIME]))


def fit(parts: Iterator[Tensor]) -> PushTTiny:
    """The codec whose components are the strongest of all patches of the images."""
    count, total, products = 0, 0.0, 0.0
    for images in parts:
        patches = unfold(images, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1).double()  # (n, 768)
        count, total, products = count + len(patches), total + patches.sum(0), products + patches.T @ patches
    if not count:
        raise ValueError("no frames to fit the codec on")
    centre = total / count
    variance, vectors = torch.linalg.eigh(products / count - torch.outer(centre, centre))
    strongest = slice(-CHANNELS, None)
    components, deviation = vectors[:, strongest].T.flip(0), variance[strongest].flip(0).clamp(min=0).sqrt()
    # An eigenvector's sign is arbitrary: make its largest entry positive.
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))  # (128, 1)
    scale = deviation.clamp(min=1e-6).rsqrt()
    scale /= (scale * deviation).square().mean().sqrt()
    codec = PushTTiny("random")
    codec.centre.copy_(centre)
    codec.components.copy_(components * largest.sign())
    codec.scale.copy_(scale.view(-1, 1, 1))
    return codec


def measure(codec: PushTTiny, images: Tensor) -> dict[str, float]:
    """PSNR in dB, of the mean error and of the worst frame, and the spread of the latents."""
    latents = codec.encode(images[:, None])  # (N, 1, 128, h, w)
    error = (codec.decode(latents)[:, 0] - images).square().mean((1, 2, 3))  # (N,)
    figures = {
        "psnr": -10 * torch.log10(error.mean() / 4),
        "psnr_lowest_frame": -10 * torch.log10(error.max() / 4),
        "latent_mean": latents.mean(),
        "latent_deviation": latents.std(),
        "latent_share_beyond_4": (latents.abs() > 4).float().mean(),
    }
    return {name: round(value.item(), 4) for name, value in figures.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", type=Path, nargs="+", required=True, help="stores that collect_demos.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="weights file, NAME.safetensors")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    codec = fit(part for path in options.demos for part in images_of(path, held_out=False))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    partial = options.output.with_name(f".{options.output.name}.partial")
    codec.save(partial)
    partial.replace(options.output)

    measured = {path.name: path for path in options.demos}
    human = Path(os.environ.get("UVA_DATA_DIR", "")) / "pusht" / "pusht.zip"
    if human.is_file():
        measured["human"] = human
    else:
        log.info("Not measured on human demonstrations: UVA_DATA_DIR is not set, or has no pusht/pusht.zip")
    figures = {name: measure(codec, torch.cat(list(images_of(path, held_out=True)))) for name, path in measured.items()}
    for name, values in figures.items():
        log.info("%s: %s", name, ", ".join(f"{key} {value:g}" for key, value in values.items()))
    options.output.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
