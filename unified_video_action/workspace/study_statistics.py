"""Figures of a table's cells: means over training seeds, and what may be claimed of their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from unified_video_action.env_runner.results import bootstrap_interval


def figure(by_seed: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The mean over training seeds and episodes.

    Its interval is a bootstrap over episodes, each averaged over the training seeds, so it holds for these trainings;
    `by_seed` shows how far trainings differ.
    """
    keys = sorted(set.intersection(*(set(each) for each in by_seed)))
    means = [float(np.mean([each[key] for each in by_seed])) for key in keys]
    low, high = bootstrap_interval(means)
    return {
        "value": float(np.mean(means)),
        "low": low,
        "high": high,
        "interval": "bootstrap over episodes, of these trainings",
        "by_seed": [float(np.mean(list(each.values()))) for each in by_seed],
        "n": len(keys),
    }


def difference(ours: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean of `ours` less `others`, paired by training seed and by episode.

    It is claimed only where both intervals exclude zero: that over episodes, and, of at least two training seeds,
    Student's over those.
    """
    pairs = [{key: one[key] - other[key] for key in one.keys() & other.keys()} for one, other in zip(ours, others)]
    found = figure(pairs)
    claimed = found["low"] > 0 or found["high"] < 0
    trainings = None
    if len(pairs) > 1:
        trainings = _student(found["by_seed"])
        claimed = claimed and (trainings[0] > 0 or trainings[1] < 0)
    return found | {"over_trainings": trainings, "claimed": bool(claimed and len(pairs) > 1)}


def measure_figure(
    name: str, ours: Mapping[int, Mapping[str, Sequence[float]]], others: Mapping[int, Mapping[str, Sequence[float]]]
) -> dict[str, Any]:
    """A measure, training seed -> its measures as value, low, high: mean, least low and greatest high of the seeds.

    `difference`, of at least two seeds that both rows have, is `ours` less `others`, with Student's interval.
    """
    values, lows, highs = zip(*(each[name] for each in ours.values() if name in each), strict=True)
    found: dict[str, Any] = {"value": float(np.mean(values)), "low": min(lows), "high": max(highs)}
    common = [seed for seed in ours.keys() & others.keys() if name in ours[seed] and name in others[seed]]
    if len(common) > 1:
        less = [ours[seed][name][0] - others[seed][name][0] for seed in common]
        low, high = _student(less)
        found["difference"] = {"value": float(np.mean(less)), "low": low, "high": high, "claimed": low > 0 or high < 0}
    return found


def _student(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of trainings."""
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return float(interval.low), float(interval.high)
