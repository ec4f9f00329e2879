"""results.json: every episode, the summary, and all that is needed to run them again."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from unified_video_action.env_runner.episode import Episode
from unified_video_action.env_runner.metrics import INTERVALS

DISTRIBUTION = "unified-video-action"
PACKAGES = ["torch", "numpy", "gymnasium", "pymunk"]  # recorded when this package itself is not installed


def describe_results(
    metrics: Mapping[str, float],
    episodes: Sequence[Episode],
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, str] | None = None,
    plan_ms: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Gather what results.json holds; `config` is the resolved configuration, `facts` what else was chosen, `plan_ms`
    how long a plan took: its `median` over calls, of so many `environments` together."""
    return {
        "metrics": dict(metrics),
        "intervals": INTERVALS,
        "facts": dict(facts or {}),
        "plan_ms": None if plan_ms is None else dict(plan_ms),
        "episodes": [episode.to_json() for episode in episodes],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "commit": git_commit(),
        "versions": versions(),
        "machine": machine(),
        "config": dict(config or {}),
    }


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that decide a result, then of all else this package depends on."""
    try:
        required = [name.group() for line in requires(DISTRIBUTION) or [] if (name := re.match(r"[\w.-]+", line))]
    except PackageNotFoundError:
        required = []
    found = {"python": platform.python_version()}
    for name in dict.fromkeys(PACKAGES + required):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # an option that is not installed
    return found


def git_commit() -> str | None:
    """Commit of the repository this package lies in, with "+changes" if files differ from it; None outside of one."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:  # an installed copy inside somebody else's repository
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def machine() -> dict[str, str]:
    """Operating system, processor, cores and, with CUDA, the GPU."""
    import torch

    found = {"system": platform.platform(), "processor": _processor(), "cores": str(os.cpu_count())}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_json(path: Path, data: Any) -> None:
    """Write strict JSON so that a crash leaves either the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = json.dumps(data, indent=2, allow_nan=False)
    text = re.sub(r"\[[-+.\deE,\s]+\]", lambda numbers: " ".join(numbers.group().split()), text)  # one line per curve
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
