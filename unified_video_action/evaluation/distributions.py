"""How far apart two sets of draws are, such as the action chunks that two samplers give for one observation."""

from __future__ import annotations

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'| of samples x and y (Székely and Rizzo), sample by sample.

    Zero only for equal distributions; of finite samples a little above it, so compare with two draws of one
    distribution. Pairs of a draw with itself are left out, which makes it unbiased: it can be slightly negative.

    Args:
        x, y: (..., n, d) and (..., m, d), at least two draws each.

    Returns:
        (...), in the unit of the draws.

    Raises:
        ValueError: fewer than two draws.
    """
    n, m = x.shape[-2], y.shape[-2]
    if min(n, m) < 2:
        raise ValueError(f"an energy distance needs at least 2 draws of each, got {n} and {m}")
    across = torch.cdist(x, y).mean((-2, -1))  # (...)
    within = [torch.cdist(z, z).sum((-2, -1)) / (k * (k - 1)) for z, k in ((x, n), (y, m))]
    return 2 * across - within[0] - within[1]


def spread(x: Tensor) -> Tensor:
    """Root of the summed variances of draws (..., n, d): the typical distance from their mean (...)."""
    return x.var(-2).sum(-1).sqrt()
