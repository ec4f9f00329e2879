"""Checks that all environments make of what they are given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np


def checked_vector(name: str, value: Any, size: int) -> np.ndarray:
    """`value` as a float64 vector; ValueError naming it when its size is not `size` or a number is not finite."""
    vector = np.asarray(value, dtype=np.float64)
    if vector.shape != (size,) or not np.isfinite(vector).all():
        raise ValueError(f"{name} must be {size} finite numbers, got {value!r}")
    return vector


def checked_options(options: Mapping[str, Any] | None, known: Collection[str] = ()) -> dict[str, Any]:
    """The options of a reset; ValueError naming those that there are not."""
    if unknown := set(options or {}) - set(known):
        raise ValueError(f"unknown reset options {sorted(unknown)}; there are {', '.join(known) or 'none'}")
    return dict(options or {})


def check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}")
