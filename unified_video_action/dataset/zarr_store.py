"""Opening zarr stores (v2 or v3) wherever they lie: a folder, a zip, or any fsspec URL."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path, PurePosixPath

import zarr
from zarr.storage import FsspecStore, LocalStore, ZipStore

from unified_video_action.files import unreadable
from unified_video_action.messages import few

MARKER = "meta/episode_ends"  # every episode store has this array below its root
MARKER_FILES = tuple(f"{MARKER}/{name}" for name in (".zarray", "zarr.json"))


class StoreError(ValueError):
    """A store that is damaged or inconsistent; the message names file, array and index."""


def expand(location: str | Path) -> str:
    """Replace `~` and environment variables such as ${UVA_DATA_DIR}.

    Raises:
        FileNotFoundError: a variable that is not set.
    """
    text = os.path.expandvars(os.path.expanduser(str(location)))
    unset = re.search(r"\$\{?(\w+)", text)
    if unset:
        raise FileNotFoundError(f"{location}: the environment variable {unset[1]} is not set; set it, or give a path")
    return text


def is_url(location: str) -> bool:
    return "://" in location or "::" in location


def open_root(location: str) -> zarr.Group:
    """Open the group that holds meta/episode_ends, read-only; it may be nested in folders.

    Args:
        location: as `expand` returns it.

    Raises:
        FileNotFoundError: nothing is there.
        StoreError: something is there that is not one readable episode store.
    """
    try:
        if is_url(location):
            store, root = _open_url(location)
        else:
            store, root = _open_path(Path(location))
        return zarr.open_group(store, mode="r", path=root, use_consolidated=False)
    except (FileNotFoundError, StoreError):
        raise
    except zipfile.BadZipFile as error:
        raise StoreError(unreadable(location, "zip", error)) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{location}: cannot be opened ({error})") from error


def _open_path(path: Path) -> tuple[LocalStore | ZipStore, str]:
    if path.is_dir():
        found = [path / name for name in MARKER_FILES if (path / name).exists()]
        found = found or [
            hit for name in MARKER_FILES for depth in ("*", "*/*") for hit in path.glob(f"{depth}/{name}")
        ]
        inside = [file.relative_to(path).as_posix() for file in found or path.iterdir()]
        root = _only_root(inside, str(path))
        return LocalStore(path, read_only=True), root
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; scripts/download_data.py fetches public data, "
            "scripts/collect_demos.py makes demonstrations"
        )
    with zipfile.ZipFile(path) as archive:
        root = _only_root(archive.namelist(), str(path))
    return ZipStore(path, mode="r"), root


def _open_url(url: str) -> tuple[FsspecStore, str]:
    if not url.rstrip("/").endswith(".zip"):
        return FsspecStore.from_url(url, read_only=True), ""
    import fsspec
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    files = fsspec.filesystem("zip", fo=url.removeprefix("zip::"))
    root = _only_root(files.find(""), url)
    return FsspecStore(AsyncFileSystemWrapper(files, asynchronous=True), path="", read_only=True), root


def _only_root(names: list[str], location: str) -> str:
    """The one folder among `names` that contains meta/episode_ends."""
    hits = [name.lstrip("/") for name in names if f"/{name}".endswith(tuple(f"/{file}" for file in MARKER_FILES))]
    roots = sorted({"/".join(PurePosixPath(name).parts[:-3]) for name in hits})
    roots = [root for root in roots if "/." not in f"/{root}"]  # hidden: unfinished, or a system's own
    if not roots:
        there = sorted({name.strip("/").split("/")[0] for name in names})
        raise StoreError(f"{location}: holds no array {MARKER}, so it is not an episode store; it has {few(there)}")
    if len(roots) > 1:
        raise StoreError(f"{location}: holds several episode stores ({', '.join(roots)}); give the path of one")
    return roots[0]
