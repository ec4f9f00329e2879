"""A compact codec for frames of the pushing table: a small network each way for every 16 x 16 patch.

A patch of such a frame holds a few flat shapes, so 32 numbers hold it where a linear codec takes 128: a token is a
small part of a transformer's width. Patches are coded one by one, so where nothing moves, latents do not change.
`scripts/train_codec.py` trains it on demonstrations; the weights are part of the package.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import fold, unfold

from unified_video_action.vae.base import FrameCodec, Moments, untrained
from unified_video_action.vae.pusht_tiny import CERTAIN

PACKAGED_WEIGHTS = Path(__file__).parent / "weights" / "patch_mlp.safetensors"
CHANNELS, PATCH, WIDTH = 32, 16, 512
SCALE = 2.0  # most of a table is empty: so the latents of whole frames have a variance of about 1


class PatchMLP(FrameCodec):
    """(3, S, S) <-> (32, S/16, S/16), a cell for each patch.

    Args:
        weights: a safetensors file; None takes the one in the package; "random" is untrained, the same every time.
        image_size: side of the square images that are encoded, in pixels; trained for 96.
        posterior: "mean" or "sample", which are the same here.

    Raises:
        FileNotFoundError: no such weights.
        ValueError: weights with tensors that are missing, extra or misshapen.
    """

    name = "patch_mlp"
    channels = CHANNELS
    downsample = PATCH

    def __init__(self, weights: str | None = None, image_size: int = 96, posterior: str = "mean") -> None:
        super().__init__(image_size, posterior, SCALE)
        values = 3 * PATCH**2
        with untrained():
            self.encoder, self.decoder = _network(values, CHANNELS), _network(CHANNELS, values)
        if weights != "random":
            self.load(weights, PACKAGED_WEIGHTS)
        self.freeze()

    def named_weights(self) -> dict[str, Tensor]:
        """In half precision, to which training has rounded them."""
        return {name: tensor.half() for name, tensor in self.state_dict().items()}

    def encode_images(self, images: Tensor) -> Moments:
        patches = unfold(images, PATCH, stride=PATCH).transpose(1, 2)  # (N, h*w, 768)
        side = images.shape[-1] // PATCH
        mean = self.encoder(patches).transpose(1, 2).unflatten(2, (side, side))  # (N, 32, h, w)
        return Moments(mean, torch.full_like(mean, CERTAIN))

    def decode_images(self, z: Tensor) -> Tensor:
        patches = self.decoder(z.flatten(2).transpose(1, 2))  # (N, h*w, 768)
        return fold(patches.transpose(1, 2), z.shape[-1] * PATCH, PATCH, stride=PATCH)  # (N, 3, S, S)


def _network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, outputs)
    )
