"""Frames that are stored as JPEG, JPEG XL or JPEG 2000: each a picture of its own, by imagecodecs."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import cv2
import numcodecs
import numpy as np
from imagecodecs import numcodecs as pictures

from unified_video_action.dataset.store import StoreError


class _OfAnyWriter(numcodecs.abc.Codec):
    """Compressor of zarr v2 whose chunks are one RGB frame each, uint8 (1, H, W, 3)."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> _OfAnyWriter:
        """From an array's metadata; keys that this version does not know concern writing alone."""
        known = signature(cls.__mro__[2].__init__).parameters  # imagecodecs' own
        return super().from_config({key: value for key, value in config.items() if key in known})


class JpegCodec(_OfAnyWriter, pictures.Jpeg):
    """`level`: quality of what is written, 1 to 100."""

    def __init__(self, level: int | None = 95, **facts: Any) -> None:
        super().__init__(level=level, **facts)


class JpegXlCodec(_OfAnyWriter, pictures.Jpegxl):
    """What UMI's archives hold.

    Args:
        level: quality of what is written, 1 to 100; 99, as published, shows hardly any loss. Ignored if `lossless`.
        effort: time spent on writing, 1 (fast) to 9 (small); reading takes no longer.
        facts: whatever else imagecodecs noted in an array's metadata.
    """

    def __init__(self, level: int | None = 99, lossless: bool = False, effort: int | None = 3, **facts: Any) -> None:
        super().__init__(level=None if lossless else level, lossless=lossless, effort=effort, **facts)


class Jpeg2kCodec(_OfAnyWriter, pictures.Jpeg2k):
    """What Diffusion Policy's caches hold; `level` in dB, 0 without loss."""


NAMES = {  # by which zarr v2 stores call them
    "imagecodecs_jpeg": JpegCodec,
    "jpeg": JpegCodec,
    "imagecodecs_jpegxl": JpegXlCodec,
    "imagecodecs_jpeg2k": Jpeg2kCodec,
}


def register_pictures() -> None:
    """Let zarr read (and write) such chunks; codecs that are registered already stay."""
    for name, codec in NAMES.items():
        if name not in numcodecs.registry.codec_registry:
            numcodecs.register_codec(codec, name)


def decode_image(encoded: bytes, where: str) -> np.ndarray:
    """A JPEG or PNG -> RGB uint8 (H, W, 3). Raises StoreError, which names `where`, for what is none."""
    buffer = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB) if len(buffer) else None
    if image is None:
        raise StoreError(f"{where}: {len(buffer)} bytes that are not readable JPEG or PNG")
    return image
