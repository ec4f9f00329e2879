"""hf-libero made usable: its assets found or downloaded, imported without a question, its suites and start states.

At import, LIBERO asks on the terminal where its data shall lie unless a file answers. A file of our own does.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import logging
import os
import re
import sys
import tarfile
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from filelock import FileLock

from unified_video_action.compat.zip_archive import read_array
from unified_video_action.env.system_libraries import explain_missing_libraries, prepare_rendering
from unified_video_action.files import data_folder, expand

log = logging.getLogger(__name__)

CONFIG_VARIABLE = "LIBERO_CONFIG_PATH"  # folder of LIBERO's config.yaml
STAND_INS = {  # what LIBERO imports and this project has no use for: matplotlib would write into the user's home
    "easydict": {"EasyDict": dict},
    "future": {},
    "future.utils": {"with_metaclass": lambda meta, *bases: meta("Base", bases, {})},
    "matplotlib": {},
    "matplotlib.cm": {},
}
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
        return Path(expand(cache_dir))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unified_video_action" / "libero"


def find_assets(assets: str | None, cache: Path) -> Path:
    """Folder of LIBERO's assets.

    Args:
        assets: their folder, an archive of it (.tar.gz), or a folder that holds either; ~ and variables are expanded.
            None: the same in $UVA_DATA_DIR/libero, where that exists; else they are downloaded.
        cache: archives are unpacked here, and downloads kept here; once, also for many processes.

    Raises FileNotFoundError for nothing at `assets`, or a failed download, ValueError for something else there.
    """
    if assets is None:
        return _inside(data_folder() / "libero", cache) or _once(cache / "assets", _download)
    path = Path(expand(assets))
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


def _once(folder: Path, fill: Callable[[Path], object]) -> Path:
    """`folder`, filled by `fill` if it is not there yet; it appears when it is whole. One process fills it."""
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileNotFoundError(
            f"{folder.parent} cannot be made ({error}); name another folder with task.env.cache_dir=FOLDER"
        ) from error
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
                whole = Path(scratch) / "whole"
                whole.mkdir()
                fill(whole)
                whole.rename(folder)
    return folder


def package_folder() -> Path:
    """Folder of the module libero.libero, found without running it. Raises ModuleNotFoundError that says
    how to install it."""
    with explain_missing_libraries():
        spec = importlib.util.find_spec("libero")
        if spec is None:
            raise ModuleNotFoundError("No module named 'libero'", name="libero")
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


def load(assets: Path, cache: Path) -> types.ModuleType:
    """The module libero.libero.envs, which will find its meshes and textures in `assets`.

    The file for LIBERO's question goes to `cache`, unless $LIBERO_CONFIG_PATH names one.
    """
    prepare_rendering()
    _answer(cache)
    with explain_missing_libraries(), contextlib.redirect_stdout(io.StringIO()), _stand_ins():
        libero = importlib.import_module("libero.libero")
        libero._assets_path_cache = str(assets)  # what its get_assets_path() returns
        return importlib.import_module("libero.libero.envs")


def _answer(cache: Path) -> None:
    """See to it that $LIBERO_CONFIG_PATH names a folder with a config.yaml."""
    given = os.environ.get(CONFIG_VARIABLE)
    if given and (Path(given) / "config.yaml").is_file():
        return
    root = package_folder()
    folders = {"bddl_files": "bddl_files", "init_states": "init_files", "datasets": "../datasets", "assets": "assets"}
    text = yaml.safe_dump(
        {"benchmark_root": str(root)} | {name: str(root / folder_name) for name, folder_name in folders.items()}
    )
    folder = cache / f"config-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    os.environ[CONFIG_VARIABLE] = str(_once(folder, lambda partial: (partial / "config.yaml").write_text(text)))


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Modules with little in them in place of those of STAND_INS that are not imported yet."""
    missing = [name for name in STAND_INS if name.partition(".")[0] not in sys.modules]
    for name in missing:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(STAND_INS[name])
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


@dataclass(frozen=True)
class Task:
    """One task of a suite."""

    name: str  # LIBERO's, such as KITCHEN_SCENE8_put_both_moka_pots_on_the_stove
    instruction: str
    bddl: Path  # describes the scene and the goal
    starts: Path

    def start_states(self) -> np.ndarray:
        """(n, S) MuJoCo states: time, positions and velocities of all joints; 50 of them for every published task."""
        states = read_array(self.starts)
        if states.ndim != 2 or not np.isfinite(states).all():
            raise ValueError(f"{self.starts} holds no start states: an array of shape {states.shape}")
        return states


def load_suite(suite: str) -> tuple[Task, ...]:
    """Tasks of a suite in LIBERO's order, by which they are numbered. Raises ValueError that names the known
    suites."""
    folder, maps = package_folder(), _task_map()
    known = [name for name in maps if (folder / "bddl_files" / name).is_dir()]
    if suite not in known:
        raise ValueError(f"suite={suite!r}: LIBERO has {', '.join(sorted(known))}")
    tasks = []
    for name in maps[suite]:
        bddl = folder / "bddl_files" / suite / f"{name}.bddl"
        words = re.search(r"\(:language\s+([^)]*)\)", bddl.read_text())[1]
        starts = folder / "init_files" / suite / f"{name}.pruned_init"
        tasks.append(Task(name, " ".join(words.split()), bddl, starts))
    return tuple(tasks)


def find_task(name: str) -> Task:
    """The task of that name, in whatever suite. Raises ValueError where LIBERO has none."""
    for path in sorted((package_folder() / "bddl_files").glob(f"*/{name}.bddl")):
        return next(task for task in load_suite(path.parent.name) if task.name == name)
    raise ValueError(f"LIBERO has no task {name!r}")


def _task_map() -> dict[str, list[str]]:
    """Read from its file: importing it by name would import torch, for nothing."""
    path = package_folder() / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("_libero_tasks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.libero_task_map
