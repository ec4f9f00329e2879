"""hf-libero made usable: imported without a question, with the assets of our choice; and what it ships with.

At import, LIBERO asks on the terminal where its data shall lie unless a file answers. A file of our own does.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import yaml

from unified_video_action.env.mujoco_rendering import prepare_rendering
from unified_video_action.env.system_libraries import explain_missing_libraries

CONFIG_VARIABLE = "LIBERO_CONFIG_PATH"  # folder of LIBERO's config.yaml


def package_folder() -> Path:
    """Folder of the module libero.libero, found without running it.

    Raises:
        ModuleNotFoundError: hf-libero is not installed; says how to install it.
    """
    with explain_missing_libraries():
        spec = importlib.util.find_spec("libero")
        if spec is None:
            raise ModuleNotFoundError("No module named 'libero'", name="libero")
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


def load(assets: Path, cache: Path) -> types.ModuleType:
    """The module libero.libero.envs, which will find its meshes and textures in `assets`.

    Args:
        assets: see `assets.find_assets`.
        cache: folder that the file for LIBERO's question goes to, unless $LIBERO_CONFIG_PATH names one.
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
    text = yaml.safe_dump(
        {
            "benchmark_root": str(root),
            "bddl_files": str(root / "bddl_files"),
            "init_states": str(root / "init_files"),
            "datasets": str(root.parent / "datasets"),
            "assets": str(root / "assets"),
        }
    )
    folder = cache / f"config-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").is_file():
        partial = folder / f".config-{os.getpid()}.yaml"
        partial.write_text(text)
        partial.replace(folder / "config.yaml")
    os.environ[CONFIG_VARIABLE] = str(folder)


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Empty modules in place of those that LIBERO imports and this project has no use for, where they are missing.

    LIBERO imports easydict and never uses it, matplotlib for the colours of a debugging view, and by way of bddl a
    piece of future that matters to Python 2.
    """
    names = {
        "easydict": {"EasyDict": dict},
        "matplotlib": {},
        "matplotlib.cm": {},
        "future": {},
        "future.utils": {"with_metaclass": lambda meta, *bases: meta("Base", bases, {})},
    }
    absent = {name for name in names if "." not in name and importlib.util.find_spec(name) is None}
    made = {name: values for name, values in names.items() if name.partition(".")[0] in absent}
    for name, values in made.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]
