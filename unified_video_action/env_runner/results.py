"""Results of an evaluation: numbers with intervals, results.json, and the journal that lets it go on after a stop."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from unified_video_action.env_runner.rollout import Episode
from unified_video_action.files import ROOT, written

log = logging.getLogger(__name__)
TASK_RATE = "/success_rate"  # ends the name of a task's own success rate
LEVEL, RESAMPLES = 0.95, 10_000
BOOTSTRAP = f"percentile bootstrap over episodes, {RESAMPLES:,} resamples"
INTERVALS = {"level": LEVEL, "mean_score": BOOTSTRAP, "mean_max": BOOTSTRAP, "success_rate": "Wilson score"}
SETTINGS = "journal.json"  # what the episodes depend on
EPISODES = "journal.{rank}.jsonl"  # a finished episode a line, of each process that evaluates


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson score interval of a success rate; of at least one trial."""
    low, high = stats.binomtest(successes, trials).proportion_ci(LEVEL, "wilson")
    return float(low), float(high)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of at least one value; it never leaves the range of the values."""
    if len(values) == 1:
        return float(values[0]), float(values[0])
    options = {"n_resamples": RESAMPLES, "confidence_level": LEVEL, "method": "percentile"}
    found = stats.bootstrap((np.asarray(values, np.float64),), np.mean, rng=np.random.default_rng(0), **options)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def summarise(episodes: Sequence[Episode], metrics: Sequence[str] = ()) -> dict[str, float]:
    """Sum up episodes; the crashed ones are counted and otherwise left out.

    Returns:
        mean_score (mean over episodes of the largest score), success_rate, and mean_max_<metric> for each of `metrics`,
        each also with _low and _high, the ends of its 95 % interval (see INTERVALS); mean_steps; episodes (completed)
        and crashed. In an environment with several tasks also <task>/success_rate, <task>/mean_score and
        <task>/episodes, and mean_task_success_rate, in which every task weighs alike.

    Raises:
        RuntimeError: no episode was completed.
    """
    completed = [episode for episode in episodes if episode.crashed is None]
    if not completed:
        reason = episodes[0].crashed if episodes else "none was run"
        raise RuntimeError(f"no episode out of {len(episodes)} was completed; the first: {reason}")
    means = {"mean_score": [episode.score for episode in completed]}
    means |= {f"mean_max_{name}": [episode.maxima[name] for episode in completed] for name in metrics}
    found = {name: (float(np.mean(values)), *bootstrap_interval(values)) for name, values in means.items()}
    successes = sum(episode.success for episode in completed)
    found["success_rate"] = successes / len(completed), *wilson_interval(successes, len(completed))
    summary = {f"{name}{end}": x for name, values in found.items() for end, x in zip(("", "_low", "_high"), values)}
    summary["mean_steps"] = float(np.mean([episode.steps for episode in completed]))
    summary |= {"episodes": len(completed), "crashed": len(episodes) - len(completed)}
    tasks = sorted({episode.task for episode in completed} - {""})
    for task in tasks:
        own = [episode for episode in completed if episode.task == task]
        summary[f"{task}{TASK_RATE}"] = sum(episode.success for episode in own) / len(own)
        summary[f"{task}/mean_score"] = float(np.mean([episode.score for episode in own]))
        summary[f"{task}/episodes"] = len(own)
    if tasks:
        summary["mean_task_success_rate"] = float(np.mean([summary[f"{task}{TASK_RATE}"] for task in tasks]))
    return summary


def task_names(metrics: Iterable[str]) -> list[str]:
    """The tasks that a summary tells apart."""
    return [name.removesuffix(TASK_RATE) for name in metrics if name.endswith(TASK_RATE)]


def describe_results(
    metrics: Mapping[str, float],
    episodes: Sequence[Episode],
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, str] | None = None,
    plan_ms: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Gather what results.json holds: also the resolved configuration, other facts, and how long a plan took."""
    return {
        "metrics": dict(metrics),
        "intervals": INTERVALS,
        "facts": dict(facts or {}),
        "plan_ms": plan_ms,
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
    names = ["torch", "numpy", "gymnasium", "pymunk"]
    with suppress(PackageNotFoundError):  # this package itself, where it is not installed
        names += [re.match(r"[\w.-]+", line).group() for line in requires("unified-video-action") or []]
    found = {"python": platform.python_version()}
    for name in dict.fromkeys(names):
        with suppress(PackageNotFoundError):  # an option that is not installed
            found[name] = version(name)
    return found


def git_commit() -> str | None:
    """Commit of the repository this package lies in, with "+changes" if files differ from it; None outside of one."""
    if not (ROOT / ".git").exists():
        return None  # such as an installed copy inside somebody else's repository
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, str]:
    """Operating system, processor, cores and, with CUDA, the GPU."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    processors = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = processors[0] if processors else platform.processor() or platform.machine()
    found = {"system": platform.platform(), "processor": processor, "cores": str(os.cpu_count())}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def write_json(path: Path, data: Any) -> None:
    """Write strict JSON so that a crash leaves either the old file or the whole new one."""
    text = json.dumps(data, indent=2, allow_nan=False)
    text = re.sub(r"\[[-+.\deE,\s]+\]", lambda numbers: " ".join(numbers.group().split()), text)  # one line per curve
    with written(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


class Journal:
    """Finished episodes of one evaluation, kept in its output folder while it runs, by each process (`rank`) its own.

    `settings` is all that an episode depends on besides its seed: weights, sampler, simulator, length.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self._own = folder / EPISODES.format(rank=rank)

    def begin(self) -> None:
        """Write down what the episodes depend on; the first process does."""
        write_json(self.folder / SETTINGS, self.settings)

    def add(self, episode: Episode) -> None:
        """Keep a finished episode; a crashed one is not, so that it is run again."""
        if episode.crashed is None:
            with self._own.open("a", encoding="utf-8") as file:
                # The new line before it ends one that was cut off in the middle.
                file.write("\n" + json.dumps(asdict(episode)) + "\n")

    def finished(self) -> dict[int, Episode]:
        """Episodes of the earlier part of the run, by seed; a damaged line does not count.

        Raises:
            ValueError: that run was of other weights or settings, which are named. FileNotFoundError: no such run.
        """
        path = self.folder / SETTINGS
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: there is no evaluation to continue in {self.folder}")
        before, now = json.loads(path.read_text()), self.settings
        keys = sorted(key for key in before | now if before.get(key) != now.get(key))
        if changed := [f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys]:
            raise ValueError(f"{self.folder} holds another evaluation and cannot be continued: {'; '.join(changed)}")
        episodes, torn = {}, 0
        for file in self._files():
            for line in filter(None, file.read_text(encoding="utf-8", errors="replace").splitlines()):
                try:
                    episode = Episode(**json.loads(line))
                except (ValueError, TypeError):
                    torn += 1
                else:
                    episodes[episode.seed] = episode
        if torn:
            log.warning("%s: %d lines of the journal are damaged; their episodes are run again", self.folder, torn)
        return episodes

    def remove(self) -> None:
        """Delete it once results.json holds everything."""
        for file in (*self._files(), self.folder / SETTINGS):
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(EPISODES.format(rank="*")))
