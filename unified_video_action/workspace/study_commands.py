"""Commands of a table: their words, running them, and what of a training is still to be done."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from unified_video_action.env_runner.report import read_curves
from unified_video_action.workspace.checkpoint import read_state
from unified_video_action.workspace.commands import ROOT


def fill(words: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Words with each {name} replaced by its value. Raises ValueError for a name that nothing gives."""
    try:
        return [re.sub(r"\{(\w+)\}", lambda at: str(values[at[1]]), str(word)) for word in words]
    except KeyError as error:
        raise ValueError(f"nothing gives {{{error.args[0]}}}, which {' '.join(map(str, words))} needs") from error


def lacks(checkpoint: Path) -> str:
    """What of its training is still to be done; a training whose time is over needs no further steps."""
    if not checkpoint.is_dir():
        return "its first checkpoint"
    config, state = yaml.safe_load((checkpoint / "config.yaml").read_text()), read_state(checkpoint)
    budget, left = config["trainer"]["time_budget_minutes"], config["training"]["steps"] - state["step"]
    if left and not (budget and state["elapsed_seconds"] >= 60 * budget):
        return f"{left} steps"
    curves = read_curves(checkpoint.parents[1] / "metrics.jsonl")
    measured = [name for name in curves if name.startswith("validation/") and curves[name][-1][0] == state["step"]]
    return "" if measured or not config["trainer"]["validate_every"] else "its last validation"


def run(words: Sequence[str], log: Path) -> str | None:
    """Run a command of this project, its output at the end of `log`: None, or why it failed."""
    with log.open("a") as file:
        file.write(f"\n$ python {shlex.join(words)}\n")
        file.flush()
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=file, stderr=file, env=environment)
    if done.returncode == 0:
        return None
    last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1]
    return f"{words[0]} ended with {done.returncode}: {last.strip()[-300:]} ({log})"


def short_hash(words: Any) -> str:
    """Of anything that JSON holds."""
    return sha256(json.dumps(words).encode()).hexdigest()[:8]


def slug(text: str) -> str:
    """A name for a folder."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
