"""Tensor names of TAEF2 as published on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor


def split_hub_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`encoder.layers.<i>.…` -> `encoder.<i>.…`; the hub counts the decoder's layers without its leading bound.

    Names that already are `encoder.<i>.…` and `decoder.<i>.…` pass unchanged.
    """

    def rename(name: str) -> str:
        match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", name)
        if not match:
            return name
        part, index, rest = match.groups()
        return f"{part}.{int(index) + (part == 'decoder')}.{rest}"

    return {rename(name): tensor for name, tensor in state.items()}
