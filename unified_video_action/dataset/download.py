"""Fetching public data sets: resumable, verified, with a progress bar."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

PIECE = 2**20  # bytes read at once
TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True)
class PublicFile:
    """A data set's public home."""

    url: str
    sha256: str
    path: str  # below the data folder


PUBLIC_FILES = {
    "pusht": PublicFile(
        "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip",
        "5e99a9803c9076ac8304483a26537b77bc60be24c11c38babad320c2417f3ae9",
        "pusht/pusht.zip",
    ),
}


def download(url: str, path: str | Path, sha256: str, progress: bool = True) -> Path:
    """Fetch `url` to `path`, going on where an earlier try stopped; a file that is there already is only verified.

    Raises:
        OSError: no connection, or the server refuses or stops; what has arrived is kept for the next try.
        ValueError: the bytes are not those of `sha256`; a partial file is removed, an existing one is left.
    """
    path = Path(path)
    if path.exists():
        if file_sha256(path) != sha256:
            raise ValueError(f"{path} exists and differs from {url} (sha256); move it away and run this again")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _fetch(url, part, progress)
    except (HTTPException, OSError) as error:
        raise OSError(f"{url} could not be fetched ({error}); run this again to go on, or copy it to {path}") from error
    found = file_sha256(part)
    if found != sha256:
        part.unlink()
        raise ValueError(f"{url}: sha256 is {found}, expected {sha256}; the file was removed, run this again")
    part.rename(path)
    return path


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(url: str, part: Path, progress: bool) -> None:
    """Append to `part` what it lacks."""
    have = part.stat().st_size if part.exists() else 0
    try:
        answer = urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=TIMEOUT)
    except HTTPError as error:
        if have and error.code == 416:  # nothing lies beyond what is here
            return
        raise
    with answer:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        shown = {"total": total, "initial": have, "unit": "B", "unit_scale": True, "disable": not progress}
        with open(part, "ab" if have else "wb") as file, tqdm.wrapattr(file, "write", desc=part.stem, **shown) as out:
            shutil.copyfileobj(answer, out, PIECE)
    if total is not None and part.stat().st_size < total:
        raise OSError(f"the connection ended after {part.stat().st_size} of {total} bytes")
