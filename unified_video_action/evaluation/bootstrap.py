"""Means, medians and ratios with intervals, of values that come in groups such as the episodes of a data set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES, LEVEL = 1000, 0.95
METHOD = f"{100 * LEVEL:.0f} % percentile bootstrap over held-out episodes, {RESAMPLES:,} resamples"
Figure = dict[str, float | None]  # value, low, high; None where nothing is known


class Bootstrap:
    """Resamples whole groups, since values of one group are alike. Values may be NaN: they do not count.

    Args:
        groups: (N,) which group each row of values (N, ...) belongs to.
    """

    def __init__(self, groups: np.ndarray, seed: int = 0) -> None:
        names, self._group = np.unique(groups, return_inverse=True)
        self._count = len(names)
        times = np.random.default_rng(seed).multinomial(self._count, np.full(self._count, 1 / self._count), RESAMPLES)
        self._times = times.astype(np.float64)  # (R, G) how often each group is drawn

    def mean(self, values: np.ndarray) -> Figure:
        """Of values (N, ...)."""
        return self._figure(lambda times: _divide(*(times @ part for part in self._sums(values))))

    def ratio(self, over: np.ndarray, under: np.ndarray) -> Figure:
        """Mean of `over` (N, ...) divided by that of `under`, where both are known."""
        known = np.isfinite(over) & np.isfinite(under)
        above, below = (self._sums(np.where(known, values, np.nan))[0] for values in (over, under))
        return self._figure(lambda times: _divide(times @ above, times @ below))

    def median(self, values: np.ndarray) -> Figure:
        """Of values (N, ...)."""
        flat, group = self._flat(values)
        order = np.argsort(flat)
        flat, group = flat[order], group[order]

        def medians(times: np.ndarray) -> np.ndarray:
            below = np.cumsum(times[:, group], axis=1)  # (R, M)
            middle = np.argmax(below >= below[:, -1:] / 2, axis=1)
            return np.where(below[:, -1] > 0, flat[middle], np.nan)

        return self._figure(medians if len(flat) else lambda times: np.full(len(times), np.nan))

    def _flat(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = np.asarray(values, np.float64).reshape(len(self._group), -1)
        group = np.broadcast_to(self._group[:, None], values.shape)
        known = np.isfinite(values)
        return values[known], group[known]

    def _sums(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum and number of the known values of each group."""
        flat, group = self._flat(values)
        return np.bincount(group, flat, self._count), np.bincount(group, minlength=self._count).astype(np.float64)

    def _figure(self, statistic: Callable[[np.ndarray], np.ndarray]) -> Figure:
        """`statistic` maps how often groups are drawn (R, G) to a value for each draw (R,)."""
        value, drawn = statistic(np.ones((1, self._count)))[0], statistic(self._times)
        drawn = drawn[np.isfinite(drawn)]
        if not np.isfinite(value) or not len(drawn):
            return {"value": None, "low": None, "high": None}
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return {"value": float(value), "low": float(low), "high": float(high)}


def _divide(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """NaN where `under` is 0."""
    return np.divide(over, under, out=np.full_like(over, np.nan), where=under != 0)
