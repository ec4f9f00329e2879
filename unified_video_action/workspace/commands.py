"""The project's commands, one after the other: shown, run in its folder, stopping at the first failure.

And the configurations that they take.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path) -> None:
    """Show and run a command, a script of this project and its arguments; exit if it fails."""
    if try_run(*command):
        sys.exit(f"Stopped: {Path(command[0]).name} failed. Its message is above.")


def try_run(*command: str | Path) -> int:
    """Show and run a command: its exit status."""
    words = [inside(word) if isinstance(word, Path) else word for word in command]
    logger.info("\n$ python %s", shlex.join(words))
    # A small model trains faster on one thread than on several.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment).returncode


def inside(path: Path) -> str:
    """A path as a command in the project's folder takes it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def read_config(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A configuration of `config`, resolved. Raises ValueError when it does not compose."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    try:
        with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
            return OmegaConf.to_container(compose(name, list(overrides)), resolve=True)
    except HydraException as error:
        raise ValueError(error) from error


def hydra_value(path: Path) -> str:
    """A path as the value of a Hydra override."""
    text = inside(path)
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", r"\'") + "'"
