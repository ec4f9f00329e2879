"""Where LIBERO's meshes and textures come from: a folder or archive that a configuration names, or their download."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)

HUB_REPOSITORY = "lerobot/libero-assets"  # which hf-libero downloads, too
PARTS = ("articulated_objects", "scenes", "textures")  # folders that tell assets from anything else
ARCHIVES = ("libero10_assets.tar.gz", "libero_assets.tar.gz")  # looked for in a folder
DATA_FOLDER = "$UVA_DATA_DIR/libero"
REMEDY = (
    f"Name a folder, or a .tar.gz of it, that holds {', '.join(PARTS)} with task.env.assets=PATH, put one of "
    f"{', '.join(ARCHIVES)} or a folder assets into {DATA_FOLDER}, or download https://huggingface.co/datasets/"
    f"{HUB_REPOSITORY}"
)


def cache_folder(cache_dir: str | None = None) -> Path:
    """Where what LIBERO needs is unpacked: `cache_dir`, or $XDG_CACHE_HOME (~/.cache) / unified_video_action/libero."""
    if cache_dir is not None:
        return Path(os.path.expandvars(cache_dir)).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unified_video_action" / "libero"


def find_assets(assets: str | None, cache: Path) -> Path:
    """Folder of LIBERO's assets.

    Args:
        assets: their folder, an archive of it (.tar.gz), or a folder that holds either; ~ and variables are expanded.
            None: the same in $UVA_DATA_DIR/libero, where that exists; else they are downloaded.
        cache: archives are unpacked here, and downloads kept here; once, also for many processes.

    Raises:
        FileNotFoundError: nothing at `assets`, or the download failed. ValueError: something else is there.
    """
    if assets is None:
        beside = Path(os.path.expandvars(DATA_FOLDER))
        if "UVA_DATA_DIR" in os.environ and beside.is_dir() and (found := _inside(beside, cache)):
            return found
        return _once(cache / "assets", _download)
    path = Path(os.path.expandvars(assets)).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"assets={assets}: {path} does not exist. {REMEDY}")
    found = _inside(path, cache)
    if found is None:
        raise ValueError(f"assets={assets}: {path} holds no LIBERO assets. {REMEDY}")
    return found


def _inside(path: Path, cache: Path) -> Path | None:
    """The assets that are `path`, or lie in it; None when there are none."""
    if path.is_file():
        return _unpacked(path, cache) if path.name.endswith((".tar.gz", ".tgz")) else None
    for folder in (path, path / "assets"):
        if _complete(folder):
            return folder
    return next((_unpacked(path / name, cache) for name in ARCHIVES if (path / name).is_file()), None)


def _complete(folder: Path) -> bool:
    return all((folder / part).is_dir() for part in PARTS)


def _unpacked(archive: Path, cache: Path) -> Path:
    about = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()[:12]

    def unpack(folder: Path) -> None:
        log.info("unpacking %s", archive)
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{archive} cannot be unpacked into {cache}: {error}") from error
        if not _complete(folder):
            raise ValueError(f"{archive} holds no LIBERO assets: expected folders {', '.join(PARTS)} in it")

    return _once(cache / f"assets-{key}", unpack)


def _download(folder: Path) -> None:
    """hf-libero's own function for this passes an option that huggingface_hub has dropped since."""
    from huggingface_hub import snapshot_download

    log.info("downloading LIBERO's assets from %s", HUB_REPOSITORY)
    try:
        snapshot_download(HUB_REPOSITORY, repo_type="dataset", local_dir=folder)
    except (OSError, ValueError) as error:  # offline, refused, or a full disk
        raise FileNotFoundError(
            f"LIBERO's assets could not be downloaded ({type(error).__name__}: {error}). {REMEDY}"
        ) from error
    if not _complete(folder):
        raise FileNotFoundError(f"{HUB_REPOSITORY} does not hold {', '.join(PARTS)} (any longer). {REMEDY}")


def _once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`folder`, filled by `fill` if it is not there yet; it appears when it is whole. One process fills it."""
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileNotFoundError(
            f"{folder.parent} cannot be made ({error}); name another place with task.env.cache_dir=FOLDER"
        ) from error
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                fill(partial)
                partial.chmod(0o755)  # temporary folders are closed to other users
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder
