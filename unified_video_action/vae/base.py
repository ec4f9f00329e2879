"""The one interface every frame codec has: frames to latents and back."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from unified_video_action.downloads import how_to_fetch
from unified_video_action.files import data_folder
from unified_video_action.noise import Generators, randn
from unified_video_action.spec import LatentShape


class Moments(NamedTuple):
    """The posterior of a codec, before shift and scale."""

    mean: Tensor  # (..., C, h, w)
    logvar: Tensor  # (..., C, h, w), natural logarithm of the variance


def resize(images: Tensor, size: int) -> Tensor:
    """Bilinear, corners not aligned, no antialias: (N, 3, H, W) -> (N, 3, size, size)."""
    if images.shape[-2:] == (size, size):
        return images
    return interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=False)


@contextmanager
def untrained() -> Iterator[None]:
    """For weights="random": what is made inside is the same every time, so a checkpoint finds its codec again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def find_weights(codec: str, given: str | None, *names: str) -> Path:
    """The weights that are `given`, or the first of `names` in the data folder's `vae`; else FileNotFoundError."""
    folder = data_folder() / "vae"
    paths = [Path(given)] if given else [folder / name for name in names]
    for path in paths:
        if path.exists():
            return path
    raise FileNotFoundError(
        f"no weights for the {codec} codec: {paths[-1]} does not exist. `{how_to_fetch(folder / names[-1])}` fetches "
        "them, vae.weights=PATH names a file, vae.weights=random starts from random weights."
    )


class FrameCodec(nn.Module, ABC):
    """A frozen autoencoder for single frames.

    A subclass ends its constructor with `self.freeze()`. Latents are `(z - shift) * scale`, with z the posterior's mean
    or a sample of it. Every codec has the argument `weights`: a file, None for the usual path, or "random", the same
    every time.

    Raises:
        FileNotFoundError: no weights; the message names the remedy.
        ValueError: a bad option, or weights with tensors that are missing, extra or misshapen.
    """

    name: str  # what configurations and messages call it
    channels: int  # of the latent
    downsample: int  # pixels per latent cell, along each axis
    frames_per_pass: int = 64  # bounds the memory of one pass; larger batches are cut

    def __init__(
        self,
        image_size: int,
        posterior: str = "mean",
        scale: float | Sequence[float] = 1.0,
        shift: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        if image_size <= 0 or image_size % self.downsample:
            raise ValueError(f"vae.image_size={image_size}: {self.name} needs a positive multiple of {self.downsample}")
        if posterior not in ("mean", "sample"):
            raise ValueError(f"vae.posterior={posterior!r}: expected 'mean' or 'sample'")
        self.image_size, self.posterior = image_size, posterior  # side of the square images in pixels, mean or sample
        per_channel = torch.ones(self.channels, 1, 1)
        self.register_buffer("scale", torch.tensor(scale).reshape(-1, 1, 1) * per_channel, persistent=False)
        self.register_buffer("shift", torch.tensor(shift).reshape(-1, 1, 1) * per_channel, persistent=False)

    @abstractmethod
    def encode_images(self, images: Tensor) -> Moments:
        """Images (N, 3, S, S) in [-1, 1] -> moments (N, C, h, w)."""

    @abstractmethod
    def decode_images(self, z: Tensor) -> Tensor:
        """Unscaled latents (N, C, h, w) -> images (N, 3, S, S) in about [-1, 1]."""

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrameCodec:
        """Stays in evaluation mode, also inside a module that trains."""
        return super().train(False)

    @property
    def latent_shape(self) -> LatentShape:
        side = self.image_size // self.downsample
        return LatentShape(self.channels, side, side)

    def key(self) -> str:
        """Names everything that the moments of a frame depend on: sha256 of class, image size and weights."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.image_size}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def named_weights(self) -> dict[str, Tensor]:
        """The weights as a weights file names them."""
        return self.state_dict()

    def save(self, path: str | Path) -> None:
        """Write the weights as one safetensors file, which the constructor's `weights` takes."""
        save_file({name: tensor.contiguous() for name, tensor in self.named_weights().items()}, path)

    @torch.no_grad()
    def moments(self, frames: Tensor) -> Moments:
        """Frames (B, T, 3, H, W), uint8 or float in [-1, 1], of any size -> moments (B, T, C, h, w)."""
        if frames.ndim != 5 or frames.shape[2] != 3:
            raise ValueError(f"frames of shape {tuple(frames.shape)}: expected (B, T, 3, H, W)")
        if frames.dtype != torch.uint8 and not frames.is_floating_point():
            raise ValueError(f"frames of {frames.dtype}: expected torch.uint8 (0..255) or floating point (-1..1)")
        parts = []
        for images in frames.flatten(0, 1).split(self.frames_per_pass):  # (<= frames_per_pass, 3, H, W)
            images = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
            parts.append(self.encode_images(resize(images.to(self.scale.dtype), self.image_size)))
        return Moments(*(torch.cat(each).unflatten(0, frames.shape[:2]) for each in zip(*parts)))  # (B, T, C, h, w)

    def latents(self, moments: Moments, generator: Generators = None) -> Tensor:
        """Moments -> scaled latents of the same shape; `generator` matters only for posterior "sample"."""
        z = moments.mean
        if self.posterior == "sample":
            z = z + torch.exp(0.5 * moments.logvar) * randn(z.shape, generator, z)
        return (z - self.shift) * self.scale

    def encode(self, frames: Tensor, generator: Generators = None) -> Tensor:
        """Frames (B, T, 3, H, W), uint8 or float in [-1, 1] -> scaled latents (B, T, C, h, w)."""
        return self.latents(self.moments(frames), generator)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, T, C, h, w) -> frames (B, T, 3, image_size, image_size) in [-1, 1]."""
        cell = astuple(self.latent_shape)
        if latents.ndim != 5 or tuple(latents.shape[2:]) != cell:
            raise ValueError(f"latents of shape {tuple(latents.shape)}: expected (B, T, {', '.join(map(str, cell))})")
        z = latents.to(self.scale.dtype) / self.scale + self.shift
        parts = [self.decode_images(cells) for cells in z.flatten(0, 1).split(self.frames_per_pass)]
        return torch.cat(parts).clamp(-1, 1).unflatten(0, latents.shape[:2])  # (B, T, 3, S, S)
