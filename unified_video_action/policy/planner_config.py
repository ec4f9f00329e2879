"""How a policy chooses among several plans."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlannerConfig:
    """Draw several plans, imagine each, execute the best (compare the paper's Table V).

    Raises:
        ValueError: a value out of range.
    """

    score: Mapping[str, Any]  # what rates an imagined plan: the `_target_` of an `env.plan_score.PlanScore`
    candidates: int = 16  # plans of the policy for each environment; 1: no choice

    def __post_init__(self) -> None:
        if not isinstance(self.candidates, int) or self.candidates < 1:
            raise ValueError(f"PlannerConfig.candidates must be a positive integer, got {self.candidates!r}")
        if not isinstance(self.score, Mapping) or "_target_" not in self.score:
            raise ValueError(f"PlannerConfig.score must be a mapping with _target_, got {self.score!r}")
