"""What is kept of one rollout."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unified_video_action.env_runner.worker import Step


@dataclass
class Episode:
    """One rollout from its start seed to its end."""

    seed: int
    steps: int = 0  # control steps executed
    success: bool = False  # `is_success` at any step
    maxima: dict[str, float] = field(default_factory=dict)  # largest value over the steps of each metric asked for
    curve: list[float] = field(default_factory=list)  # score after every step
    crashed: str | None = None  # why its environment was lost
    task: str = ""  # which of several tasks it was, in an environment that has them

    @property
    def score(self) -> float:
        """Largest score so far, in [0, 1]."""
        return max(self.curve, default=0.0)

    def add(self, step: Step, metrics: Sequence[str]) -> None:
        """Account for one executed step.

        Raises:
            ValueError: the environment's info lacks the score, the success or one of `metrics`.
        """
        for name in ("score", "is_success", *metrics):
            if name not in step.info:
                raise ValueError(f"the environment's info has no {name!r}; it has {', '.join(sorted(step.info))}")
        self.steps += 1
        self.task = step.task
        self.curve.append(step.info["score"])
        self.success |= bool(step.info["is_success"])
        for name in metrics:
            self.maxima[name] = max(self.maxima.get(name, step.info[name]), step.info[name])

    def to_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            **({"task": self.task} if self.task else {}),
            "score": self.score,
            **{f"max_{name}": value for name, value in self.maxima.items()},
            "success": self.success,
            "steps": self.steps,
            "crashed": self.crashed,
            "curve": [round(score, 4) for score in self.curve],
        }
