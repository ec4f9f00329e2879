"""Frechet distances of clips: on features of the frame codec, which need no download, and of an I3D network (FVD)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

DIMENSIONS = 64  # of a clip's codec features: few enough for the covariance of some hundred clips
RESAMPLES, LEVEL = 200, 0.95


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Frechet distance of the normal distributions fitted to features (N, d) and (M, d), in float64.

    |mean - mean'|^2 + tr(C + C' - 2 (C C')^(1/2)); the root's trace is that of the symmetric C^(1/2) C' C^(1/2).

    Raises:
        ValueError: a value that is not finite.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * cross)


def frechet_interval(x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int = 0) -> dict[str, float]:
    """The distance of paired clips (N, d), with a bootstrap interval over whole `groups` (N,), such as episodes.

    Resampled clips repeat, which makes their distance larger on average; the interval is moved back by that much.
    """
    value = frechet_distance(x, y)
    rng, names = np.random.default_rng(seed), np.unique(groups)
    members = [np.flatnonzero(groups == name) for name in names]
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[group] for group in rng.integers(len(names), size=len(names))])
        drawn.append(frechet_distance(x[rows], y[rows]))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) + value - np.mean(drawn)
    return {"value": value, "low": max(float(low), 0.0), "high": float(high)}


def codec_features(latents: Tensor) -> np.ndarray:
    """Latents of clips (N, T, C, h, w) -> (N, d) in float64: their values in fixed random orthonormal directions."""
    flat = latents.flatten(1).double().cpu().numpy()  # (N, T*C*h*w)
    size = min(DIMENSIONS, flat.shape[1])
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((flat.shape[1], size)))[0]
    return flat @ directions


class I3D:
    """Features of the I3D network that FVD is defined by (Unterthiner et al. 2018), from its TorchScript file.

    Args:
        path: i3d_torchscript.pt, as the FVD implementations of StyleGAN-V and cd-fvd load it.

    Raises:
        FileNotFoundError: it is not there.
    """

    SIDE, LEAST = 224, 9  # pixels, and the fewest frames that the network takes

    def __init__(self, path: Path, device: torch.device) -> None:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no I3D weights there. FVD needs i3d_torchscript.pt; the distance on codec features needs none"
            )
        self.net, self.device = torch.jit.load(str(path), map_location=device).eval(), device

    @torch.no_grad()
    def features(self, frames: Tensor, rows: int = 8) -> np.ndarray:
        """uint8 clips (N, T, 3, h, w) -> (N, 400). Shorter clips than it takes are stretched by repeating frames."""
        if frames.shape[1] < self.LEAST:
            frames = frames.repeat_interleave(-(-self.LEAST // frames.shape[1]), dim=1)
        made = []
        for part in frames.split(rows):
            video = part.to(self.device).float() / 127.5 - 1  # (n, T, 3, h, w)
            n, t = video.shape[:2]
            video = torch.nn.functional.interpolate(video.flatten(0, 1), (self.SIDE, self.SIDE), mode="bilinear")
            video = video.unflatten(0, (n, t)).transpose(1, 2)  # (n, 3, T, h, w)
            made.append(self.net(video, rescale=False, resize=False, return_features=True).cpu())
        return torch.cat(made).double().numpy()
