"""Faults, made on purpose: UVA_FAULTS=full (make faults) makes many more of them than a run of the whole suite does."""

import os


def count(few: int, many: int) -> int:
    """How often a fault is made."""
    return many if os.environ.get("UVA_FAULTS") == "full" else few
