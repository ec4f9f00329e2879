"""What several tests of the data path share."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from unified_video_action.vae.base import FrameCodec, Moments


class ToyCodec(FrameCodec):
    """Block means of the image; with `noisy` it has a posterior."""

    name, channels, downsample = "toy", 3, 8

    def __init__(self, gain: float = 1.0, image_size: int = 96, posterior: str = "mean", noisy: bool = False) -> None:
        super().__init__(image_size, posterior, scale=0.5, shift=[0.1, 0.2, 0.3])
        self.gain = torch.nn.Parameter(torch.tensor(gain))
        self.noisy = noisy
        self.encoded = 0  # frames so far
        self.freeze()

    def encode_images(self, images: torch.Tensor) -> Moments:
        self.encoded += len(images)
        mean = avg_pool2d(images, 8) * self.gain
        return Moments(mean, torch.full_like(mean, -2.0 if self.noisy else -30.0))

    def decode_images(self, z: torch.Tensor) -> torch.Tensor:
        return interpolate(z / self.gain, scale_factor=8)


@pytest.fixture
def toy_codec() -> Callable[..., ToyCodec]:
    """The class of a tiny codec: (3, 96, 96) -> (3, 12, 12)."""
    return ToyCodec


class FileServer(http.server.SimpleHTTPRequestHandler):
    """Serves a folder as the server's `ranges` and `cut` say."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        content, wanted = path.read_bytes(), self.headers.get("Range")
        self.server.ranges_asked.append(wanted)
        start, end = 0, len(content)
        if wanted and self.server.ranges:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
            start, end = int(first), min(int(last or end - 1) + 1, len(content))
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.wfile.write(content[start : min(end, start + (self.server.cut or end))])
        self.close_connection = True

    def do_HEAD(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A local HTTP server of `tmp_path`.

    `.url`; `.ranges`: whether it knows byte ranges; `.cut`: bytes after which it hangs up; `.ranges_asked`: headers.
    """
    handler = functools.partial(FileServer, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.ranges, server.cut, server.ranges_asked = True, None, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
