"""kl-f16: the paper's frame codec (LDM autoencoder, 16x downsampling, 16 channels), with diffusers' modules."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from torch import Tensor

from unified_video_action.compat import kl16
from unified_video_action.compat.tensors import load_exactly, read_safetensors
from unified_video_action.compat.torch_archive import load_checkpoint
from unified_video_action.vae.base import FrameCodec, Moments, find_weights, untrained

SCALE = 0.2325  # latents of natural images come to about unit deviation


def build_network() -> diffusers.AutoencoderKL:
    """The network alone; attention is in the encoder's last level and in both middles, not in the decoder's levels."""
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=16,
        block_out_channels=(128, 128, 256, 256, 512),
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",) * 5,
        layers_per_block=2,
        norm_num_groups=32,
        sample_size=256,
        scaling_factor=SCALE,
    )


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """kl-f16 weights under diffusers names, from safetensors or a torch checkpoint, under diffusers or LDM names."""
    if Path(path).suffix == ".safetensors":
        state = read_safetensors(path)
    else:
        state = kl16.find(load_checkpoint(path), str(path))
    return kl16.to_diffusers(state) if kl16.is_ldm(state) else dict(state)


class AutoencoderKL(FrameCodec):
    """The paper's codec: (3, S, S) <-> (16, S/16, S/16). `weights` have diffusers' or LDM's names."""

    name = "kl"
    channels = 16
    downsample = 16
    frames_per_pass = 16

    def __init__(self, weights: str | None = None, image_size: int = 256, posterior: str = "mean") -> None:
        super().__init__(image_size, posterior, scale=SCALE)
        if weights != "random":
            path = find_weights(self.name, weights, "kl16.safetensors", "kl16.ckpt")
            with torch.device("meta"):  # the random start would take seconds and is not used
                network = build_network()
            self.network = network.to_empty(device=self.scale.device)
            load_exactly(self.network, read_weights(path), str(path))
        else:
            with untrained():
                self.network = build_network()
        self.network.to(memory_format=torch.channels_last)
        self.freeze()

    def encode_images(self, images: Tensor) -> Moments:
        images = images.contiguous(memory_format=torch.channels_last)
        mean, logvar = self.network.quant_conv(self.network.encoder(images)).chunk(2, dim=1)
        return Moments(mean, torch.clamp(logvar, -30.0, 20.0))

    def decode_images(self, z: Tensor) -> Tensor:
        z = z.contiguous(memory_format=torch.channels_last)
        return self.network.decoder(self.network.post_quant_conv(z))

    def named_weights(self) -> dict[str, Tensor]:
        return self.network.state_dict()
