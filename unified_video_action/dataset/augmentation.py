"""Random changes of a video's look that leave its actions valid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad


@dataclass(frozen=True)
class VideoAugmentation:
    """Crop-and-resize and Gaussian blur, each drawn once for a whole video (the paper's recipe for PushT)."""

    crop: float = 0.95  # side of the crop relative to the frame's, rounded down: 91 of 96 pixels
    crop_probability: float = 0.5
    blur_kernel: int = 5  # taps, odd
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # range of the standard deviation, pixels
    blur_probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ValueError(f"augmentation.crop={self.crop}: expected 0 < crop <= 1")
        for name in ("crop_probability", "blur_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation.{name}={getattr(self, name)}: expected 0 to 1")
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0:
            raise ValueError(f"augmentation.blur_kernel={self.blur_kernel}: expected a positive odd number")
        if len(self.blur_sigma) != 2 or not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"augmentation.blur_sigma={self.blur_sigma}: expected 0 < lowest <= highest")

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 (T, 3, H, W) -> the same shape; every random choice comes from `rng`."""
        crops, corner = rng.random() < self.crop_probability, rng.random(2)
        blurs, sigma = rng.random() < self.blur_probability, rng.uniform(*self.blur_sigma)
        if not (crops or blurs):
            return frames
        video = torch.from_numpy(np.ascontiguousarray(frames)).float()
        if crops:
            video = self._crop(video, corner)
        if blurs:
            video = self._blur(video, sigma)
        return video.round_().clamp_(0, 255).to(torch.uint8).numpy()

    def _crop(self, video: Tensor, corner: np.ndarray) -> Tensor:
        height, width = video.shape[-2:]
        rows, columns = int(height * self.crop), int(width * self.crop)
        top, left = int(corner[0] * (height - rows + 1)), int(corner[1] * (width - columns + 1))
        window = video[..., top : top + rows, left : left + columns]  # (T, 3, rows, columns)
        return interpolate(window, size=(height, width), mode="bilinear", align_corners=False)  # (T, 3, H, W)

    def _blur(self, video: Tensor, sigma: float) -> Tensor:
        reach = self.blur_kernel // 2
        taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        taps = taps / taps.sum()
        flat = video.flatten(0, 1)[:, None]  # (T * 3, 1, H, W)
        flat = pad(flat, (reach, reach, reach, reach), mode="reflect")
        flat = conv2d(conv2d(flat, taps.reshape(1, 1, 1, -1)), taps.reshape(1, 1, -1, 1))
        return flat[:, 0].unflatten(0, video.shape[:2])  # (T, 3, H, W)
