"""The kl-f16 encoder as a policy that acts on a CPU runs it: what kl_forward computes, in less time."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL as Network
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from unified_video_action.vae import kl_forward
from unified_video_action.vae.base import FrameCodec
from unified_video_action.vae.kl import SCALE, AutoencoderKL
from unified_video_action.vae.winograd import WinogradConv2d, group_affine, pays

WIDE = 512  # channels: a layer's transformed weights would take 36 MiB, and its pictures are too small to gain much


class ActingAutoencoderKL(AutoencoderKL):
    """Encodes with the weights that `codec` has now; all else is the codec's."""

    def __init__(self, codec: AutoencoderKL) -> None:
        FrameCodec.__init__(self, codec.image_size, codec.posterior, scale=SCALE)
        self.network = codec.network
        self.encoder = Encoder(codec.network)
        self.freeze()

    def parameters_of(self, images: Tensor) -> Tensor:
        return torch.cat([self.encoder(image) for image in images.split(1)])  # one at a time: they share memory


class Encoder:
    """One image (1, 3, S, S) -> mean and log-variance of the posterior, (1, 2C, h, w).

    Residual blocks of large pictures convolve after Winograd, with norm and activation on the way in, and in memory
    that is used again: a system hands out fresh memory at a tenth of the speed.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        blocks = [block for level in network.encoder.down_blocks for block in level.resnets]
        convs = [conv for block in blocks if block.out_channels < WIDE for conv in (block.conv1, block.conv2)]
        self.convs = {conv: WinogradConv2d(conv) for conv in convs}
        self.memory = torch.empty(0)

    def __call__(self, image: Tensor) -> Tensor:
        return kl_forward.encode(self.network, image, self._residual, self._halve)

    def _residual(self, block: ResnetBlock2D, x: Tensor) -> Tensor:
        """x is overwritten."""
        if block.conv1 not in self.convs or not pays(block.conv1, *x.shape[2:]):
            return kl_forward.residual(block, x)
        y = x if block.conv_shortcut is None else block.conv_shortcut(x)
        x, y = (each.permute(0, 2, 3, 1).contiguous() for each in (x, y))  # (1, H, W, C)
        hidden = self._used(y.shape)
        self.convs[block.conv1](x, hidden, group_affine(block.norm1, x))
        self.convs[block.conv2](hidden, y, group_affine(block.norm2, hidden), add=True)
        return y.permute(0, 3, 1, 2)

    def _halve(self, downsampler: Downsample2D, x: Tensor) -> Tensor:
        *_, height, width = x.shape
        x = x.permute(0, 2, 3, 1)  # (1, H, W, C)
        padded = self._used((1, height + 1, width + 1, x.shape[-1]))
        padded[:, height:], padded[:, :, width:], padded[:, :height, :width] = 0, 0, x
        return downsampler.conv(padded.permute(0, 3, 1, 2))

    def _used(self, shape: tuple[int, ...]) -> Tensor:
        """Memory with anything in it, the same every time."""
        size = math.prod(shape)
        if self.memory.numel() < size:
            self.memory = torch.empty(size)
        return self.memory[:size].view(shape)
