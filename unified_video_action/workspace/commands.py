"""What the project's scripts share: options, errors, the configurations that they take, and running each other."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unified_video_action.files import ROOT as ROOT
from unified_video_action.files import written

logger = logging.getLogger(__name__)
_INSTALLED = ROOT / "unified_video_action" / "config"  # where a wheel has them (setup.py)
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else ROOT / "config"


def script_parser(about: str | None, **options: Any) -> argparse.ArgumentParser:
    """A parser of a script whose docstring is `about`; from now on its log is shown."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter, **options)


def held_out_parser(about: str | None) -> argparse.ArgumentParser:
    """A parser of a script that measures a checkpoint on windows of held-out episodes."""
    parser = script_parser(about)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder of a checkpoint")
    add("--weights", choices=("ema", "model"), default="ema")
    add("--data", nargs="+", help="stores to measure on (default: the first one of the run)")
    add("--rows", type=at_least(1), default=64, help="windows at a time (default: 64)")
    add("--sampler", help="sampler, such as ddim10 (default: the configuration's)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    return parser


def at_least(least: float, kind: type = int) -> Callable[[str], Any]:
    """The type of an option with a smallest value."""

    def number(text: str) -> Any:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return value

    number.__name__ = kind.__name__  # what argparse calls it when `text` is not a number
    return number


def above_zero(text: str) -> float:
    """The type of an option."""
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return float(text)


@contextmanager
def mistakes(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Within the context an error that a user can mend ends the script with one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def write_figures(path: Path | None, figures: Any) -> None:
    """Write JSON where a path is given, and say so."""
    if path is not None:
        with written(path) as partial:
            partial.write_text(json.dumps(figures, indent=2) + "\n")
        logger.info("\nWritten to %s", path)


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
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return OmegaConf.to_container(compose(name, list(overrides)), resolve=True)
    except HydraException as error:
        raise ValueError(error) from error


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hydra_value(path: Path) -> str:
    """A path as the value of a Hydra override."""
    text = inside(path)
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", r"\'") + "'"
