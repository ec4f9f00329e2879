"""Weights that need not be stored: drawn from a tensor list, the same on every machine.

A fresh diffusion head outputs exactly zero, so parity with freshly initialised weights would show nothing.
"""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
MODEL_SEED, VAE_SEED = 1234, 4321


def tensor_list(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of `golden/<name>_keys.json` by published tensor name, in state-dict order."""
    return {key: tuple(shape) for key, shape in json.loads((GOLDEN / f"{name}_keys.json").read_text()).items()}


def reseed(name: str, seed: int) -> dict[str, Tensor]:
    """float32 tensors for `golden/<name>_keys.json`, drawn in the order of the list from one CPU generator."""
    generator = torch.Generator().manual_seed(seed)
    return {key: _draw(key, shape, generator) for key, shape in tensor_list(name).items()}


def _draw(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    kind = key.split(".")[-1]
    if kind == "bias":
        return noise.mul_(0.02)
    if kind != "weight":  # position embeddings, mask tokens
        return noise.mul_(0.2)
    if len(shape) == 1:  # scales of norms
        return noise.mul_(0.05).add_(1)
    gain = 0.3 if "adaLN_modulation" in key else 1.0
    return noise.mul_(gain / math.sqrt(math.prod(shape[1:])))
