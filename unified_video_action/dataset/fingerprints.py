"""Fingerprints of files: of what is in them, not of where they lie or when they were written."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

SMALL = 256 * 2**20  # bytes that are read whenever a fingerprint is asked for; it is remembered for more
AT_ONCE = 2**22  # bytes in memory
PIECE = 2**16  # bytes at a file's beginning, middle and end that enter a fingerprint of much compressed data


def user_cache() -> Path:
    """$XDG_CACHE_HOME/unified_video_action, in ~/.cache by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unified_video_action"


def hash_files(files: Mapping[str, Path], small: int = SMALL) -> str:
    """sha256 over the names (keys), sizes and whole contents of files; one that is not there counts as absent.

    More than `small` bytes in all are read again only when a name, a size or a time of modification is another.
    """
    found = {name: path.stat() if path.exists() else None for name, path in files.items()}

    def contents() -> str:
        digest = hashlib.sha256()
        for name, path in files.items():
            digest.update(f"{name} {found[name] and found[name].st_size}\n".encode())
            if found[name]:
                with open(path, "rb") as file:
                    while piece := file.read(AT_ONCE):
                        digest.update(piece)
        return digest.hexdigest()

    signature = hashlib.sha256()
    for name, stat in found.items():
        signature.update(f"{name} {stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    total = sum(stat.st_size for stat in found.values() if stat)
    return contents() if total <= small else remembered(signature.hexdigest(), contents, total)


def remembered(signature: str, contents: Callable[[], str], total: int) -> str:
    """What `contents` gives, which reads `total` bytes, or gave at an earlier time for the same signature."""
    path = user_cache() / "fingerprints" / signature
    if path.is_file() and re.fullmatch("[0-9a-f]{64}", text := path.read_text()):
        return text
    log.info("reading %.1f GB of data once, to know later whether it has changed", total / 1e9)
    text = contents()
    temporary = path.with_name(f".{signature}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        log.warning("%s cannot be written (%s): the data will be read again at the next start", path, error)
    return text


def sample_files(digest: hashlib._Hash, paths: Sequence[Path], root: Path) -> None:
    """Add every file's name below `root`, size and contents to a fingerprint; of large data, three pieces of each.

    Meant for compressed files, such as videos, of which an edit leaves hardly a byte alone.
    """
    sizes = [path.stat().st_size for path in paths]
    whole = sum(sizes) <= SMALL
    for path, size in zip(paths, sizes, strict=True):
        digest.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
        with open(path, "rb") as file:
            for start in range(0, size, PIECE) if whole else sorted({0, size // 2, max(size - PIECE, 0)}):
                file.seek(start)
                digest.update(file.read(PIECE))
