"""Random changes of a video's look that leave its actions valid."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv1d, interpolate, pad


@dataclass(frozen=True)
class VideoAugmentation:
    """Crop-and-resize, Gaussian blur and changes of colour, each drawn once for a whole video.

    The paper crops and blurs PushT, which is what the defaults do, jitters the colours of LIBERO, and does all of it to
    frames of hand-held grippers. Colours change first, in the order of the fields.
    """

    crop: float = 0.95  # side of the crop relative to the frame's, rounded down: 91 of 96 pixels
    crop_probability: float = 0.5
    blur_kernel: int = 5  # taps, odd
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # range of the standard deviation, pixels
    blur_probability: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # of brightness, contrast, saturation and hue
    jitter_probability: float = 1.0
    sharpness: tuple[float, float] = (0.0, 2.0)  # range of the factor: 0 smooths, 1 changes nothing, 2 sharpens
    sharpness_probability: float = 0.0
    autocontrast_probability: float = 0.0  # every channel of every frame is stretched to 0..255
    grayscale_probability: float = 0.0

    def __post_init__(self) -> None:
        jitter = len(self.jitter) == 4 and 0 <= min(self.jitter) and max(self.jitter) <= 1 and self.jitter[3] <= 0.5
        sigma, sharpness = self.blur_sigma, self.sharpness
        checks = {
            "crop": (0 < self.crop <= 1, "0 < crop <= 1"),
            "blur_kernel": (self.blur_kernel >= 1 and self.blur_kernel % 2, "a positive odd number"),
            "blur_sigma": (len(sigma) == 2 and 0 < sigma[0] <= sigma[1], "0 < lowest <= highest"),
            "sharpness": (len(sharpness) == 2 and 0 <= sharpness[0] <= sharpness[1], "0 <= lowest <= highest"),
            "jitter": (jitter, "four numbers 0 to 1, the last at most 0.5"),
        }
        chances = [field.name for field in fields(self) if field.name.endswith("_probability")]
        checks |= {name: (0 <= getattr(self, name) <= 1, "0 to 1") for name in chances}
        for name, (right, expected) in checks.items():
            if not right:
                raise ValueError(f"augmentation.{name}={getattr(self, name)}: expected {expected}")

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 (T, 3, H, W) -> the same shape; every random choice comes from `rng`."""
        crops, corner = rng.random() < self.crop_probability, rng.random(2)
        blurs, sigma = rng.random() < self.blur_probability, rng.uniform(*self.blur_sigma)
        video = self._recoloured(torch.from_numpy(np.ascontiguousarray(frames)), rng)  # (T, 3, H, W)
        if not (crops or blurs):
            return video.numpy()
        # Cropping, resizing and blurring are linear and separable: together they are one matrix for each axis.
        rows, columns = (
            self._matrix(size, start if crops else None, sigma if blurs else None)
            for size, start in zip(video.shape[-2:], corner, strict=True)
        )
        video = rows @ video.float() @ columns.T  # (T, 3, H, W)
        return video.round_().clamp_(0, 255).to(torch.uint8).numpy()

    def _recoloured(self, video: Tensor, rng: np.random.Generator) -> Tensor:
        from torchvision.transforms.v2 import functional

        def chosen(probability: float) -> bool:
            """Draws only where there is a choice: what a seed does to recipes without it never changes."""
            return probability == 1 or (probability > 0 and rng.random() < probability)

        if any(self.jitter) and chosen(self.jitter_probability):
            # Factors within 1 +- jitter and a turn of the hue within +- jitter, applied in an order drawn as well.
            amounts = rng.uniform(-1, 1, 4) * self.jitter + (1, 1, 1, 0)
            for number in rng.permutation(4):
                if self.jitter[number]:
                    adjust = getattr(functional, f"adjust_{('brightness', 'contrast', 'saturation', 'hue')[number]}")
                    video = adjust(video, float(amounts[number]))
        if chosen(self.sharpness_probability):
            video = functional.adjust_sharpness(video, float(rng.uniform(*self.sharpness)))
        if chosen(self.autocontrast_probability):
            video = functional.autocontrast(video)
        if chosen(self.grayscale_probability):
            video = functional.rgb_to_grayscale(video, num_output_channels=3)
        return video

    def _matrix(self, size: int, start: float | None, sigma: float | None) -> Tensor:
        """(size, size): what happens along one axis; `start` in [0, 1) is where the crop begins, None: no crop."""
        axis = torch.eye(size)[:, None]  # (size of the input, 1, size of the output)
        if start is not None:
            kept = int(size * self.crop)
            first = int(start * (size - kept + 1))
            axis = interpolate(axis[..., first : first + kept], size=size, mode="linear", align_corners=False)
        if sigma is not None:
            reach = self.blur_kernel // 2
            taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
            axis = conv1d(pad(axis, (reach, reach), mode="reflect"), (taps / taps.sum())[None, None])
        return axis[:, 0].T
