"""Fit the project's own frame codecs on scripted demonstrations, and measure them.

python scripts/collect_demos.py --task pusht -n 120 --output demos.zarr.zip
python scripts/collect_demos.py --task pusht -n 60 --seed 5 --goal random --output demos_m.zarr.zip
python scripts/train_codec.py --kind mlp --demos demos.zarr.zip demos_m.zarr.zip --output weights.safetensors
python scripts/train_codec.py --kind linear --demos demos.zarr.zip demos_m.zarr.zip --output weights.safetensors

`linear` (`vae=pusht_tiny`) are the principal components of all patches of all frames: a closed form, so the same
demonstrations give the same weights. `mlp` (`vae=pusht_mlp`) is trained for some minutes; a little noise on its latents
makes it spread what it keeps evenly over them. Every tenth frame is held out and measured; when UVA_DATA_DIR is set, so
are human demonstrations, which are never fitted. The figures go to a JSON file beside the weights.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from unified_video_action.dataset.formats.zarr import ReplayBuffer
from unified_video_action.vae.base import FrameCodec
from unified_video_action.vae.patch_mlp import PATCH, PatchMLP
from unified_video_action.vae.pusht_tiny import CHANNELS, PushTTiny
from unified_video_action.workspace.commands import script_parser

log = logging.getLogger("train_codec")
FRAMES_AT_A_TIME = 500
LATENT_NOISE = 0.05  # on latents of variance 1, while the mlp is trained
COMMON, COMMON_SHARE = 50, 0.1  # patches that occur more often than this; their share of a batch


def to_images(frames: np.ndarray) -> Tensor:
    """uint8 (N, S, S, 3) -> float (N, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def images_of(location: str | Path, held_out: bool, most: int | None = None) -> Iterator[Tensor]:
    """Images (N, 3, S, S) of a store of episodes, in parts: every tenth frame if held out, else the others, and of them
    at most `most`, evenly spaced."""
    store = ReplayBuffer(location, images=["img"], vectors=[])
    rows = np.arange(len(store))
    rows = rows[(rows % 10 == 0) == held_out]
    if most is not None and len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(int)]
    for start in tqdm(range(0, len(rows), FRAMES_AT_A_TIME), desc=Path(location).name, unit="part"):
        yield to_images(store.frames("img", rows[start : start + FRAMES_AT_A_TIME]))


def patches_of(images: Tensor) -> Tensor:
    """Images (N, 3, S, S) -> their patches (n, 768), channel first."""
    return rearrange(images, "n c (h p) (w q) -> (n h w) (c p q)", p=PATCH, q=PATCH)


def fit_linear(parts: Iterator[Tensor]) -> PushTTiny:
    """The codec whose components are the strongest of all patches of the images."""
    count, total, products = 0, 0.0, 0.0
    for images in parts:
        patches = patches_of(images).double()
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


def different_patches(parts: Iterator[Tensor], device: str) -> tuple[Tensor, Tensor]:
    """Patches that differ from each other (n, 768) uint8, and places (m,) of the common ones, such as white."""
    code = torch.randint(2**40, (3 * PATCH**2,), generator=torch.Generator().manual_seed(0)).to(device)
    kept, codes = [], []
    for images in parts:
        patches = ((patches_of(images.to(device)) + 1) * 127.5).round().to(torch.uint8)
        kept.append(patches)
        codes.append((patches.long() * code).sum(1).cpu())
    if not kept:
        raise ValueError("no frames to fit the codec on")
    _, places, counts = np.unique(torch.cat(codes).numpy(), return_index=True, return_counts=True)
    common = np.flatnonzero(counts > COMMON)
    return torch.cat(kept)[torch.from_numpy(places).to(device)], torch.from_numpy(common).to(device)


def fit_mlp(
    parts: Iterator[Tensor], minutes: float, device: str, batch: int, rate: float = 1.5e-3, most_steps: float = math.inf
) -> PatchMLP:
    """Train the small networks on patches that differ, by squared error, for some minutes or `most_steps`."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    codec = PatchMLP("random").to(device).requires_grad_(True)
    patches, common = different_patches(parts, device)
    log.info("%d different patches, %d of them common", len(patches), len(common))
    # Unit variance of every latent; its running statistics become part of the encoder's last layer.
    norm = nn.BatchNorm1d(codec.channels, affine=False, momentum=0.01).to(device)
    optimizer = torch.optim.AdamW(codec.parameters(), betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    steps, started, used = 0, time.monotonic(), 0.0
    with tqdm(desc="training", unit="step") as bar:
        while used < 1:
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (steps + 1) / 500) * 0.5 * (1 + math.cos(math.pi * used))
            rows = torch.randint(len(patches), (batch,), device=device)
            rows[: int(batch * COMMON_SHARE)] = common[torch.randint(len(common), (int(batch * COMMON_SHARE),))]
            x = patches[rows].float() / 127.5 - 1
            z = norm(codec.encoder(x))
            loss = (codec.decoder(z + LATENT_NOISE * torch.randn_like(z)) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            used = max((time.monotonic() - started) / (60 * minutes), steps / most_steps)
            bar.update()
            if steps % 500 == 0:
                bar.set_postfix(loss=f"{loss.item():.5f}", refresh=False)
    deviation, last = (norm.running_var + norm.eps).sqrt(), codec.encoder[-1]
    with torch.no_grad():
        last.weight /= deviation.unsqueeze(1)
        last.bias.copy_((last.bias - norm.running_mean) / deviation)
        for weight in codec.parameters():
            weight.copy_(weight.half())  # as it is shipped
    codec.freeze()
    log.info("%d steps of %d patches", steps, batch)
    return codec


def measure(codec: FrameCodec, images: Tensor) -> dict[str, float]:
    """PSNR in dB, of the mean error and of the worst frame, and the spread of the latents."""
    images = images.to(codec.scale.device)
    latents = codec.encode(images[:, None])  # (N, 1, C, h, w)
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
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--kind", choices=("linear", "mlp"), default="mlp", help="which codec (default: mlp)")
    add("--demos", type=Path, nargs="+", required=True, help="stores that collect_demos.py wrote")
    add("--output", type=Path, required=True, help="weights file, NAME.safetensors")
    add("--frames", type=int, help="at most so many of each store (default: all)")
    add("--minutes", type=float, default=30.0, help="mlp: to train (default: 30)")
    add("--batch", type=int, default=512, help="mlp: patches of a step (default: 512)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="mlp: cpu or cuda")
    options = parser.parse_args(arguments)

    parts = (part for path in options.demos for part in images_of(path, False, options.frames))
    linear = options.kind == "linear"
    codec = fit_linear(parts) if linear else fit_mlp(parts, options.minutes, options.device, options.batch)
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
    figures = {name: measure(codec, torch.cat(list(images_of(path, True, 2000)))) for name, path in measured.items()}
    for name, values in figures.items():
        log.info("%s: %s", name, ", ".join(f"{key} {value:g}" for key, value in values.items()))
    options.output.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
