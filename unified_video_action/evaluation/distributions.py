"""How far apart two sets of samples are, such as the action chunks that two samplers give for one observation."""

from __future__ import annotations

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'| (Székely and Rizzo) of samples x (..., n, d), y (..., m, d).

    Zero only for equal distributions; pairs of a draw with itself are left out, so an estimate can be below
    zero: compare with two sets of samples of one distribution. Returns (...), in the unit of the samples.

    Raises:
        ValueError: fewer than two samples.
    """
    n, m = x.shape[-2], y.shape[-2]
    if min(n, m) < 2:
        raise ValueError(f"an energy distance needs at least 2 samples of each, got {n} and {m}")
    across = torch.cdist(x, y).mean((-2, -1))  # (...)
    within = [torch.cdist(z, z).sum((-2, -1)) / (k * (k - 1)) for z, k in ((x, n), (y, m))]
    return 2 * across - within[0] - within[1]


def spread(x: Tensor) -> Tensor:
    """Root of the summed variances of samples (..., n, d): the typical distance from their mean (...)."""
    return x.var(-2).sum(-1).sqrt()
