"""Fitting the project's own codecs to frames: `scripts/train_codec.py`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from unified_video_action.vae.base import FrameCodec
from unified_video_action.vae.patch_mlp import PATCH, PatchMLP
from unified_video_action.vae.pusht_tiny import CHANNELS, PushTTiny

log = logging.getLogger(__name__)
LATENT_NOISE = 0.05  # on latents of variance 1, while the mlp is trained
COMMON, COMMON_SHARE = 50, 0.1  # patches that occur more often than this; their share of a batch


def to_images(frames: np.ndarray) -> Tensor:
    """uint8 (N, S, S, 3) -> float (N, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


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
    """Patches that differ from each other (n, 768) uint8, and indices (m,) of the common ones, such as white."""
    code = torch.randint(2**40, (3 * PATCH**2,), generator=torch.Generator().manual_seed(0)).to(device)
    kept, codes = [], []
    for images in parts:
        patches = ((patches_of(images.to(device)) + 1) * 127.5).round().to(torch.uint8)
        kept.append(patches)
        codes.append((patches.long() * code).sum(1).cpu())
    if not kept:
        raise ValueError("no frames to fit the codec on")
    _, indices, counts = np.unique(torch.cat(codes).numpy(), return_index=True, return_counts=True)
    common = np.flatnonzero(counts > COMMON)
    return torch.cat(kept)[torch.from_numpy(indices).to(device)], torch.from_numpy(common).to(device)


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
            if len(common):
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
