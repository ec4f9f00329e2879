"""Frames that are stored as JPEG, JPEG XL or JPEG 2000: each a picture of its own, decoded by whoever reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numcodecs
import numpy as np
from numcodecs.abc import Codec

CODEC_IDS = ("imagecodecs_jpeg", "jpeg")  # names under which zarr v2 stores say that their chunks are JPEG
XL_CODEC_ID = "imagecodecs_jpegxl"
J2K_CODEC_ID = "imagecodecs_jpeg2k"
UNSUPPORTED = ("tables", "header")  # of imagecodecs: parts of the stream that are kept elsewhere


def decode_image(encoded: bytes, where: str) -> np.ndarray:
    """A JPEG or PNG -> RGB uint8 (H, W, 3).

    Raises:
        ValueError: not a picture, or a damaged one; names `where`.
    """
    buffer = np.frombuffer(encoded, np.uint8)
    image = None if not len(buffer) else cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError(f"{where}: {len(buffer)} bytes that are no readable JPEG or PNG")
    return image


def encode_jpeg(frame: np.ndarray, quality: int = 95) -> bytes:
    """RGB uint8 (H, W, 3) -> JPEG."""
    done, encoded = cv2.imencode(".jpg", np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return encoded.tobytes()


class JpegCodec(Codec):
    """Compressor of zarr v2 whose chunks are one RGB frame each, (1, H, W, 3), named as imagecodecs names its own.

    Args:
        level: quality of what is written, 1 to 100.
    """

    codec_id = CODEC_IDS[0]

    def __init__(self, level: int = 95) -> None:
        self.level = level

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> JpegCodec:
        """From the metadata of an array, which may have been written by imagecodecs."""
        for key in UNSUPPORTED:
            if config.get(key):
                raise ValueError(f"JPEG chunks with their own {key} cannot be read; rewrite the array without")
        if config.get("bitspersample") not in (None, 8):
            raise ValueError(f"JPEG chunks of {config['bitspersample']} bits cannot be read; rewrite the array in 8")
        level = config.get("level", config.get("quality"))
        return cls(95 if level is None else level)

    def get_config(self) -> dict[str, Any]:
        return {"id": self.codec_id, "level": self.level}

    def encode(self, buf: Any) -> bytes:
        return encode_jpeg(_single_frame(buf, "JPEG"), self.level)

    def decode(self, buf: Any, out: Any = None) -> np.ndarray:
        return _handed_over(decode_image(bytes(buf), "a chunk"), out)


class JpegXlCodec(Codec):
    """The same for JPEG XL, which UMI's archives hold.

    Args:
        level: quality of what is written, 1 to 100; 99, as published, shows hardly any loss.
        lossless: write without any loss; level is then ignored.
        effort: time spent on writing, 1 (fast) to 9 (small); reading takes no longer.
    """

    codec_id = XL_CODEC_ID

    def __init__(self, level: int = 99, lossless: bool = False, effort: int = 3) -> None:
        self.level, self.lossless, self.effort = level, lossless, effort

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> JpegXlCodec:
        """From the metadata of an array; whatever else imagecodecs noted there concerns writing alone."""
        if config.get("bitspersample") not in (None, 8):
            raise ValueError(f"JPEG XL chunks of {config['bitspersample']} bits cannot be read; rewrite them in 8")
        given = {key: config[key] for key in ("level", "lossless", "effort") if config.get(key) is not None}
        return cls(**given)

    def get_config(self) -> dict[str, Any]:
        return {"id": self.codec_id, "level": self.level, "lossless": self.lossless, "effort": self.effort}

    def encode(self, buf: Any) -> bytes:
        from imagecodecs import jpegxl_encode

        frame, level = _single_frame(buf, "JPEG XL"), None if self.lossless else self.level
        return jpegxl_encode(frame, level, lossless=self.lossless, effort=self.effort, numthreads=1)

    def decode(self, buf: Any, out: Any = None) -> np.ndarray:
        from imagecodecs import JpegxlError, jpegxl_decode

        return _handed_over(_decoded(jpegxl_decode, JpegxlError, buf, "JPEG XL"), out)


class Jpeg2kCodec(Codec):
    """The same for JPEG 2000, which the caches of Diffusion Policy's robomimic and real-robot data hold.

    Args:
        level: quality of what is written, in dB; 0: without loss.
    """

    codec_id = J2K_CODEC_ID

    def __init__(self, level: int = 50) -> None:
        self.level = level

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Jpeg2kCodec:
        """From the metadata of an array; whatever else imagecodecs noted there concerns writing alone."""
        if config.get("bitspersample") not in (None, 8):
            raise ValueError(f"JPEG 2000 chunks of {config['bitspersample']} bits cannot be read; rewrite them in 8")
        return cls(0 if config.get("level") is None else config["level"])

    def get_config(self) -> dict[str, Any]:
        return {"id": self.codec_id, "level": self.level}

    def encode(self, buf: Any) -> bytes:
        from imagecodecs import jpeg2k_encode

        return jpeg2k_encode(_single_frame(buf, "JPEG 2000"), self.level)

    def decode(self, buf: Any, out: Any = None) -> np.ndarray:
        from imagecodecs import Jpeg2kError, jpeg2k_decode

        return _handed_over(_decoded(jpeg2k_decode, Jpeg2kError, buf, "JPEG 2000"), out)


def _decoded(decode: Callable[..., np.ndarray], damage: type[Exception], buf: Any, kind: str) -> np.ndarray:
    try:
        return decode(bytes(buf), numthreads=1)
    except (damage, ValueError) as error:
        raise ValueError(f"a chunk: {len(buf)} bytes that are no readable {kind} ({error})") from error


def register_jpeg() -> None:
    """Let zarr read (and write) such chunks; codecs that are registered already, imagecodecs' say, stay."""
    own = {**dict.fromkeys(CODEC_IDS, JpegCodec), XL_CODEC_ID: JpegXlCodec, J2K_CODEC_ID: Jpeg2kCodec}
    for name, codec in own.items():
        if name not in numcodecs.registry.codec_registry:
            numcodecs.register_codec(codec, name)


def _single_frame(buf: Any, kind: str) -> np.ndarray:
    """The frame (H, W, 3) of a chunk that holds one."""
    frame = np.asarray(buf)
    if frame.dtype != np.uint8 or frame.shape[-1] != 3 or np.prod(frame.shape[:-3]) != 1:
        raise ValueError(f"{kind} needs chunks of one RGB frame, uint8 (1, H, W, 3); got {frame.dtype} {frame.shape}")
    return np.ascontiguousarray(frame.reshape(frame.shape[-3:]))


def _handed_over(image: np.ndarray, out: Any) -> np.ndarray:
    """`image`, in `out` where that is given."""
    if out is None:
        return image
    target = np.asarray(out)
    target[...] = image.reshape(target.shape)
    return target
