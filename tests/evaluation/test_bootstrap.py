import numpy as np
import pytest

from unified_video_action.evaluation.bootstrap import Bootstrap

GROUPS = np.repeat(np.arange(20), 5)


def test_intervals_contain_what_they_should_and_groups_stay_together() -> None:
    rng = np.random.default_rng(0)
    of_group = rng.normal(10, 2, 20)
    values = of_group[GROUPS][:, None] + rng.normal(0, 0.1, (100, 3))
    mean, median = Bootstrap(GROUPS).mean(values), Bootstrap(GROUPS).median(values)
    assert mean["value"] == pytest.approx(values.mean()) and mean["low"] < mean["value"] < mean["high"]
    assert 1 < mean["high"] - mean["low"] == pytest.approx(2 * 1.96 * of_group.std() / np.sqrt(20), rel=0.2)
    assert median["value"] == pytest.approx(np.median(values), abs=0.3) and median["low"] < median["high"]
    assert Bootstrap(np.arange(100)).mean(values)["high"] - Bootstrap(np.arange(100)).mean(values)["low"] < 1


def test_ratios_are_paired_and_nan_does_not_count() -> None:
    rng = np.random.default_rng(0)
    under = rng.uniform(1, 20, (100, 4))
    under[:, 3] = np.nan
    ratio = Bootstrap(GROUPS).ratio(3 * under, under)
    assert ratio == pytest.approx({"value": 3.0, "low": 3.0, "high": 3.0})
    other = 3 * under
    other[0, 0] = np.nan
    assert Bootstrap(GROUPS).ratio(other, under)["value"] == pytest.approx(3.0)
    nothing, unknown, bootstrap = dict.fromkeys(("value", "low", "high")), np.full((100, 2), np.nan), Bootstrap(GROUPS)
    assert bootstrap.mean(unknown) == bootstrap.median(unknown) == bootstrap.ratio(unknown, unknown) == nothing
    assert bootstrap.ratio(np.ones((100, 1)), np.zeros((100, 1))) == nothing
