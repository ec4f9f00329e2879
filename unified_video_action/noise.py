"""Normal noise that is a sample's own, whatever it is batched with."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def randn(shape: Sequence[int], generator: Generators, like: Tensor) -> Tensor:
    """Normal noise of `shape`, with the device and dtype of `like`.

    A list of generators draws an equal share of the first axis each. Generators live on the CPU or on the device; the
    same seed on the same kind repeats. Raises ValueError for rows that cannot be shared equally.
    """
    if isinstance(generator, Sequence):
        share, rest = divmod(shape[0], len(generator))
        if rest or not share:
            raise ValueError(f"{len(generator)} generators for a batch of {shape[0]} rows: give one per row")
        return torch.cat([randn((share, *shape[1:]), each, like) for each in generator])
    device = like.device if generator is None else generator.device
    return torch.randn(*shape, generator=generator, device=device).to(like)
