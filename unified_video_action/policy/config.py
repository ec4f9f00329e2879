"""What a policy's configuration may say, apart from its network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unified_video_action.model.samplers import Sampler
from unified_video_action.spec import require_integers

LOSS_TERMS = ("video", "action", "proprio", "auxiliary")


@dataclass(frozen=True)
class PlannerConfig:
    """Draw several plans, imagine each, execute the best (compare the paper's Table V)."""

    score: Mapping[str, Any]  # what rates an imagined plan: the `_target_` of an `env.plan_score.PlanScore`
    candidates: int = 16  # plans of the policy for each environment; 1: no choice

    def __post_init__(self) -> None:
        require_integers(self, "candidates")
        if not isinstance(self.score, Mapping) or "_target_" not in self.score:
            raise ValueError(f"PlannerConfig.score must be a mapping with _target_, got {self.score!r}")


@dataclass(frozen=True)
class UVAConfig:
    """How the model is trained and asked, apart from its network."""

    action_steps: int = 8  # actions executed of each chunk
    sampler: str = "ancestral100"  # for actions: kind and number of steps
    video_sampler: str = "ancestral100"  # for frames
    temperature: float = 0.95  # of the ancestral sampler's noise
    iterations: int = 1  # autoregressive steps of frame generation
    guidance: float = 1.0  # classifier-free guidance on the instruction; 1: off
    relative_to: str | None = None  # low-dim observation that actions are relative to (beyond the paper)
    relative_frames: bool = False  # future latents are changes from the newest frame's, scaled (beyond the paper)
    plan_first: bool = False  # frames of a plan: actions first, then their frames (beyond the paper)
    loss_scale: Mapping[str, float] = field(default_factory=dict)  # factors of loss terms; 1 where not named
    planner: PlannerConfig | None = None  # choose among several plans; None: execute the first one

    def __post_init__(self) -> None:
        require_integers(self, "action_steps", "iterations")
        for name, factor in self.loss_scale.items():
            if name not in LOSS_TERMS or not factor >= 0:
                raise ValueError(
                    f"UVAConfig.loss_scale.{name}={factor!r}: expected a factor >= 0 for {', '.join(LOSS_TERMS)}"
                )
        self.samplers()

    def samplers(self, override: str | None = None) -> tuple[Sampler, Sampler]:
        """(for actions, for frames)"""
        return tuple(Sampler.parse(override or own, self.temperature) for own in (self.sampler, self.video_sampler))
