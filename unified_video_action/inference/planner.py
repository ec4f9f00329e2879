"""Chooses among several plans of a policy: imagines each by forward dynamics and scores what is imagined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unified_video_action.env.plan_score import Imagined, PlanScore
from unified_video_action.inference.episode import Episode
from unified_video_action.instantiate import instantiate
from unified_video_action.policy.base import BasePolicy, Observation
from unified_video_action.policy.config import PlannerConfig

MOST_ROWS = 64  # plans that are imagined at a time, for the sake of memory

Simulate = Callable[[Mapping[int, np.ndarray]], Mapping[int, np.ndarray]]  # slot -> (K, A, D) to slot -> (K, F, S)


@dataclass(frozen=True)
class Planner:
    """Executes the best of several plans.

    Args:
        score: rates imagined plans; only what it needs is imagined: states cost a pass of the transformer, frames the
            video head and the codec as well.
        candidates: plans of the policy for each environment.
        simulate: gives the true states that follow, in place of the model's: the bound of what a planner can win.

    Raises:
        ValueError: a value out of range, or a score that needs what cannot be had.
    """

    score: PlanScore
    candidates: int = 16
    simulate: Simulate | None = None

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"Planner.candidates must be at least 1, got {self.candidates}")
        needs = frozenset(self.score.needs)
        if not needs or not needs <= {"states", "frames"}:
            raise ValueError(f"{self._score_name}.needs must name states, frames or both, got {sorted(needs)}")
        if self.simulate is not None and "frames" in needs:
            raise ValueError(f"{self._score_name} needs frames, but a simulator gives states only")

    @classmethod
    def build(cls, config: PlannerConfig) -> Planner:
        """The planner that a policy's configuration describes."""
        return cls(instantiate(dict(config.score), PlanScore, "policy.planner.score"), config.candidates)

    @property
    def description(self) -> str:
        """For reports: candidates, score and its settings."""
        plain = {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self.score).items()
        }
        settings = ", ".join(f"{name}={value}" for name, value in plain.items())  # the same under any print options
        return f"best of {self.candidates} by {self._score_name}({settings})"

    @property
    def _score_name(self) -> str:
        return type(self.score).__name__

    def scores(
        self,
        policy: BasePolicy,
        observation: Observation,
        chunks: Tensor,
        episodes: Sequence[Episode],
        sampler: str | None = None,
    ) -> np.ndarray:
        """Scores (n, K) of each environment's plans.

        Args:
            observation: of the policy, `candidates` rows for each environment. chunks: (n*K, A, D), the plans.
            episodes: of `policy`, one for each environment; frames are imagined from noise of its own, the same for
                all its plans.

        Raises:
            ValueError: scores of another shape, or one that is not finite.
        """
        scores = np.asarray(self.score(self._imagine(policy, observation, chunks, episodes, sampler)), np.float64)
        if scores.shape != (len(chunks),):
            raise ValueError(f"{self._score_name} gave scores of shape {scores.shape} for {len(chunks)} plans")
        if len(bad := np.flatnonzero(~np.isfinite(scores))):
            episode = episodes[bad[0] // self.candidates]
            where = f"seed {episode.seed} in slot {episode.slot}"
            raise ValueError(f"the planner's score {self._score_name} is not finite: {scores[bad[0]]} for {where}")
        return scores.reshape(len(episodes), self.candidates)

    def choose(self, scores: np.ndarray) -> np.ndarray:
        """Indices (n,) of the best plans by scores (n, K); of the first ones, where none beats them by the margin."""
        first = np.arange(self.candidates) == 0
        return (scores + self.score.margin * first).argmax(axis=1)

    def _imagine(
        self,
        policy: BasePolicy,
        observation: Observation,
        chunks: Tensor,
        episodes: Sequence[Episode],
        sampler: str | None,
    ) -> Imagined:
        actions = chunks.cpu().numpy()
        if self.simulate is not None:
            tried = np.split(actions, len(episodes))
            states = self.simulate({each.slot: own for each, own in zip(episodes, tried, strict=True)})
            return Imagined(actions, np.concatenate([states[each.slot] for each in episodes]))
        newest = [each.history((0,))[-1].observation[policy.task.camera_names[0]] for each in episodes]
        seeds = [int(torch.randint(2**62, (), generator=each.planning)) for each in episodes]
        made: dict[str, list[np.ndarray]] = defaultdict(list)
        for first in range(0, len(chunks), MOST_ROWS):
            rows = slice(first, first + MOST_ROWS)
            part, own = chunks[rows], _each(observation, lambda value, rows=rows: value[rows])
            plans = range(first, first + len(part))
            noise = [torch.Generator().manual_seed(seeds[plan // self.candidates]) for plan in plans]
            if "states" in self.score.needs:
                states, history = policy.predict_states(own, part, noise).cpu().numpy(), policy.task.horizon.history
                made["states"].append(states[:, history:])  # (b, F, K)
                made["now"].append(states[:, history - 1])
            if "frames" in self.score.needs:
                frames = policy.predict_forward_dynamics(own, part, noise, sampler)["frames"]
                made["frames"].append(frames.cpu().numpy())
        imagined = {kind: np.concatenate(parts) for kind, parts in made.items()}
        return Imagined(actions, newest=np.stack(newest), **imagined)


def repeated(observation: Observation, times: int) -> dict:
    """A batch of observations (n, ...), with every row `times` over: (n * times, ...)."""
    return _each(observation, lambda value: value.repeat_interleave(times, 0))


def _each(observation: Observation, change: Callable[[Tensor], Tensor]) -> dict:
    return {
        name: type(value)(*map(change, value)) if isinstance(value, tuple) else change(value)
        for name, value in observation.items()
    }
