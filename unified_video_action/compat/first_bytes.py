"""What a file is that was saved under another's name."""

from __future__ import annotations

from pathlib import Path

HEAD = 512  # bytes that are enough to tell


def mistaken(head: bytes) -> str | None:
    """What the first bytes of a file say that it is instead of data, and what to do; None for anything else."""
    if not head:
        return "it is empty: was the download, or the disk's space, cut short?"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file that it points to: run `git lfs pull` in its repository"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "it is a web page, not the file: its address gave a page to click on or to sign in. Open the address in "
            "a browser, or use the site's own command (gdown, huggingface-cli download)"
        )
    return None


def require_data(path: Path) -> None:
    """Raise ValueError for a file that is something to read instead of data."""
    with path.open("rb") as file:
        if said := mistaken(file.read(HEAD)):
            raise ValueError(f"{path} is not what its name says: {said}")
