import numpy as np
import pytest

from unified_video_action.env_runner.episode import Episode
from unified_video_action.env_runner.metrics import bootstrap_interval, summarise, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),  # the usual published values, 95 %
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (1, 20, 0.0089, 0.2361),
        (50, 50, 0.92865, 1.0),
    ],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_agrees_with_scipy():
    from scipy.stats import binomtest

    for successes, trials, confidence in [(3, 7, 0.9), (81, 100, 0.99), (0, 3, 0.95)]:
        expected = binomtest(successes, trials).proportion_ci(confidence, "wilson")
        assert wilson_interval(successes, trials, confidence) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("arguments", [(1, 0), (3, 2), (-1, 2), (1, 2, 1.0)])
def test_wilson_interval_refuses(arguments: tuple):
    with pytest.raises(ValueError):
        wilson_interval(*arguments)


def test_bootstrap_interval_is_near_the_normal_one_and_inside_the_range():
    values = np.random.default_rng(1).uniform(0.2, 1, 200)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.006)
    assert bootstrap_interval([1.0, 1.0]) == (1.0, 1.0)
    assert bootstrap_interval(values) == (low, high)
    with pytest.raises(ValueError):
        bootstrap_interval([])


def test_summary_leaves_crashed_episodes_out():
    episodes = [
        Episode(1, 3, True, {"coverage": 0.96}, [0.2, 1.0, 0.7]),
        Episode(2, 2, False, {"coverage": 0.4}, [0.5, 0.4]),
        Episode(3, 1, False, {}, [0.9], crashed="exit status 3"),
    ]
    summary = summarise(episodes, ["coverage"])
    assert summary["mean_score"] == 0.75
    assert summary["success_rate"] == 0.5
    assert (summary["success_rate_low"], summary["success_rate_high"]) == wilson_interval(1, 2)
    assert summary["mean_score_low"] == 0.5 and summary["mean_score_high"] == 1.0
    assert summary["mean_max_coverage"] == pytest.approx(0.68)
    assert (summary["mean_max_coverage_low"], summary["mean_max_coverage_high"]) == bootstrap_interval([0.96, 0.4])
    assert summary["mean_steps"] == 2.5
    assert (summary["episodes"], summary["crashed"]) == (2, 1)


def test_no_summary_of_nothing():
    with pytest.raises(RuntimeError, match="no episode out of 1 was completed; the first: it fell"):
        summarise([Episode(1, crashed="it fell")])
