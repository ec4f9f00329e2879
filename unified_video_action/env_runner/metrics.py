"""Numbers that sum up a set of episodes, with their uncertainty."""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np

from unified_video_action.env_runner.episode import Episode

TASK_RATE = "/success_rate"  # ends the name of a task's own success rate
INTERVALS = {  # which intervals a summary has; results name them
    "level": 0.95,
    "mean_score": "percentile bootstrap over episodes, 10,000 resamples",
    "mean_max": "percentile bootstrap over episodes, 10,000 resamples",
    "success_rate": "Wilson score",
}


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate.

    Raises:
        ValueError: no trials, successes outside 0 .. trials, or confidence outside (0, 1).
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes must lie in 0 .. trials and trials be at least 1, got {successes} of {trials}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / trials
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / scale
    low = 0.0 if successes == 0 else centre - half  # exact at the ends, where rounding would leave 1e-17
    high = 1.0 if successes == trials else centre + half
    return low, high


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; it never leaves the range of the values.

    Raises:
        ValueError: no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("an interval needs at least one value")
    picks = np.random.default_rng(seed).integers(sample.size, size=(resamples, sample.size))
    means = sample[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


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
    scores = [episode.score for episode in completed]
    successes = sum(episode.success for episode in completed)
    means = {"mean_score": scores}
    means |= {f"mean_max_{name}": [episode.maxima[name] for episode in completed] for name in metrics}
    summary = {name: (float(np.mean(values)), *bootstrap_interval(values)) for name, values in means.items()}
    summary["success_rate"] = successes / len(completed), *wilson_interval(successes, len(completed))
    return {
        f"{name}{end}": value
        for name, values in summary.items()
        for end, value in zip(("", "_low", "_high"), values, strict=True)
    } | {
        "mean_steps": float(np.mean([episode.steps for episode in completed])),
        "episodes": len(completed),
        "crashed": len(episodes) - len(completed),
        **_by_task(completed),
    }


def task_names(metrics: Iterable[str]) -> list[str]:
    """The tasks that a summary tells apart."""
    return [name.removesuffix(TASK_RATE) for name in metrics if name.endswith(TASK_RATE)]


def _by_task(episodes: Sequence[Episode]) -> dict[str, float]:
    tasks = sorted({episode.task for episode in episodes} - {""})
    summary: dict[str, float] = {}
    for task in tasks:
        own = [episode for episode in episodes if episode.task == task]
        summary[f"{task}{TASK_RATE}"] = sum(episode.success for episode in own) / len(own)
        summary[f"{task}/mean_score"] = float(np.mean([episode.score for episode in own]))
        summary[f"{task}/episodes"] = len(own)
    if tasks:
        summary["mean_task_success_rate"] = float(np.mean([summary[f"{task}{TASK_RATE}"] for task in tasks]))
    return summary
