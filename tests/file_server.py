"""A local HTTP server of files that knows byte ranges, hangs up when it should, and can be a hub."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

COMMIT = "c" * 40


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
        self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


class Hub(FileServer):
    """A model hub whose only repository is the folder: what fetching a snapshot and one commit ask for."""

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.partition(f"/resolve/{COMMIT}")[2] or path)

    def do_GET(self) -> None:
        files = [path for path in sorted(Path(self.directory).iterdir()) if path.is_file()]
        if self.path.startswith("/api/models/") and "/tree/" in self.path:
            entries = [{"path": path.name, "size": path.stat().st_size, "oid": COMMIT} for path in files]
            return self.answer([{"type": "file", **entry} for entry in entries])
        if self.path.startswith("/api/models/"):
            names = [{"rfilename": path.name} for path in files]
            return self.answer({"id": "user/name", "sha": COMMIT, "siblings": names, "private": False, "tags": []})
        if "/resolve/" in self.path:
            self.server.files_asked.append(Path(self.path).name)
        super().do_GET()

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(sent)["files"]]
            return self.answer({"files": [{**file, "shouldIgnore": False} for file in files]})
        if "/commit/" in self.path:
            for line in map(json.loads, sent.decode().splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    (Path(self.directory) / line["value"]["path"]).write_bytes(content)
        url = f"{self.server.url}/user/name"
        self.answer({"url": url, "commitUrl": f"{url}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

    def answer(self, content: object) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextlib.contextmanager
def serving(kind: type[FileServer], folder: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A local HTTP server of `folder`.

    `.url`; `.ranges`: whether it knows byte ranges; `.cut`: bytes after which it hangs up; `.ranges_asked`: headers;
    `.files_asked`: names of files of a hub.
    """
    handler = functools.partial(kind, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.ranges, server.cut, server.ranges_asked, server.files_asked = True, None, [], []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
