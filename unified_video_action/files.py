"""Where files lie, how they are written, those of one format in a folder, and what one is that cannot be read."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unified_video_action.messages import few

log = logging.getLogger(__name__)

HEAD = 512  # bytes that are enough to tell what a file is
LFS_POINTER = b"version https://git-lfs"
ROOT = Path(__file__).resolve().parents[1]  # the project's folder
MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<[!?a-zA-Z]")  # HTML, or a file server's error in XML


def data_folder() -> Path:
    """Where data and weights lie: $UVA_DATA_DIR, or `data` in the project's folder."""
    return Path(os.environ.get("UVA_DATA_DIR") or ROOT / "data").expanduser()


def expand(location: str | Path) -> str:
    """Replace `~` and variables, $UVA_DATA_DIR by the data folder. Raises FileNotFoundError for one that is not set."""
    text = re.sub(r"\$(UVA_DATA_DIR\b|\{UVA_DATA_DIR\})", lambda _: str(data_folder()), str(location))
    text = os.path.expandvars(os.path.expanduser(text))
    unset = re.search(r"\$\{?(\w+)", text)
    if unset:
        raise FileNotFoundError(f"{location}: the environment variable {unset[1]} is not set; set it, or give a path")
    return text


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or a folder at, which becomes `path` when all went well; else it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield part
        part.rename(path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)


def find_files(
    folder: Path, endings: Sequence[str], known: Sequence[str] = (), remedy: str = "", required: bool = True
) -> list[Path]:
    """What lies in a folder and has one of the endings, by name.

    Upper and lower case are alike. Hidden entries, whose names begin with a dot, are left out: macOS writes ._NAME
    beside every NAME on other systems' disks. All that is left out is logged.

    Args:
        endings: in lower case, such as ".mp4". known: endings of companions that are left out unsaid.
        remedy: for a folder without such files, what to do. required: there must be one at least.

    Raises:
        FileNotFoundError: no such folder, or no such files in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    entries = [path for path in sorted(folder.iterdir()) if not path.name.endswith(tuple(known))]
    found = [path for path in entries if path.name.lower().endswith(tuple(endings)) and path.name[0] != "."]
    others = sorted({path.name for path in entries} - {path.name for path in found})
    if not found and required:
        wanted = " or ".join(f"*{ending}" for ending in endings)
        raise FileNotFoundError(f"{folder}: holds no {wanted} but {few(others)}{remedy and '; ' + remedy}")
    if found and others:
        log.info("%s: %d files are read; left out: %s", folder, len(found), few(others))
    return found


def mistaken(head: bytes, kind: str) -> str | None:
    """What the first bytes of a file say that it is in place of that kind of data, and what to do; None: nothing."""
    if not head:
        return f"is empty, expected a {kind}; fetch it again"
    if head.startswith(LFS_POINTER):
        return f"is a Git LFS pointer, not the {kind} itself; run `git lfs pull` in its repository"
    if MARKUP.match(head):
        return (
            f"is a web page, not a {kind}; download the file itself again, by its direct link, after logging in, or by "
            "the site's own command (gdown, huggingface-cli download)"
        )
    return None


def require_data(path: Path) -> None:
    """Raise ValueError for a file that is something to read in place of data."""
    with path.open("rb") as file:
        if said := mistaken(file.read(HEAD), "file of weights"):
            raise ValueError(f"{path}: {said}")


def unreadable(path: str | Path, kind: str, error: Exception) -> str:
    """A message about a file that could not be read as a `kind`, such as "parquet file": what it is, and what to do."""
    if os.path.isfile(path) and os.access(path, os.R_OK):
        with open(path, "rb") as file:
            if said := mistaken(file.read(HEAD), kind):
                return f"{path}: {said}"
    return f"{path}: not a readable {kind} ({error}); it may be truncated, fetch it again"
