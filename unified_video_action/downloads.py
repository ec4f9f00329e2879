"""Public data and weights by name (downloads.yaml): resumable, verified, with a progress bar."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import yaml
from tqdm import tqdm

from unified_video_action.files import HEAD, data_folder, mistaken

PIECE = 2**20  # bytes read at once
TIMEOUT = 30.0  # seconds without an answer


TABLE = Path(__file__).with_name("downloads.yaml")
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


@dataclass(frozen=True)
class Public:
    """A public file; downloads.yaml says what its fields are."""

    page: str
    size: str | None
    sha256: str | None
    licence: str | None
    path: str
    use: str
    url: str = ""
    drive: str = ""
    then: str = ""

    @property
    def address(self) -> str:
        return self.url or DRIVE + self.drive


@cache
def public_files() -> Mapping[str, Public]:
    return {name: Public(**fields) for name, fields in yaml.safe_load(TABLE.read_text()).items()}


def how_to_fetch(path: str | Path) -> str:
    """The command that brings a file of the data folder; "" for one that is not public."""
    names = [name for name, public in public_files().items() if data_folder() / public.path == Path(path)]
    return f"python scripts/download.py {names[0]}" if names else ""


def download(url: str, path: str | Path, sha256: str | None, progress: bool = True) -> Path:
    """Fetch `url` to `path`, going on where an earlier try stopped; a file that is there already is only verified.

    Raises:
        OSError: no connection, or the server refuses or stops; what has arrived is kept for the next try.
        ValueError: the bytes are not those of `sha256`, or a web page; a partial file is removed, an existing one is
            left.
    """
    path = Path(path)
    if path.exists():
        if sha256 and file_sha256(path) != sha256:
            raise ValueError(f"{path} exists and differs from {url} (sha256); move it away and run this again")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _fetch(url, part, progress)
    except (HTTPException, OSError) as error:
        raise OSError(f"{url} could not be fetched ({error}); run this again to go on, or copy it to {path}") from error
    with open(part, "rb") as file:
        fault = mistaken(file.read(HEAD), "file of data")
    if not fault and sha256 and (found := file_sha256(part)) != sha256:
        fault = f"sha256 is {found}, expected {sha256}; the file was removed, run this again"
    if fault:
        part.unlink()
        raise ValueError(f"{url}: {fault}")
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
