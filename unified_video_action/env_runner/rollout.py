"""The rollout loop: the same for every simulator and every policy."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from unified_video_action.env_runner.episode import Episode
from unified_video_action.env_runner.vector import Crash, EnvProcesses
from unified_video_action.env_runner.worker import Observation


class Session(Protocol):
    """The part of `inference.session.PolicySession` that a rollout needs."""

    def reset(self, slot: int = 0, seed: int = 0, text: str | None = None) -> None: ...
    def observe(self, obs: Observation, slot: int = 0) -> None: ...
    def plan(self, slots: Sequence[int] | None = None) -> np.ndarray: ...  # (n, A, D)


def instruction_of(observation: Observation) -> str | None:
    """What the environment asks for in words; None where there is no language."""
    return str(observation["instruction"]) if "instruction" in observation else None


def rollout(
    session: Session,
    envs: EnvProcesses,
    seeds: Iterable[int],
    *,
    max_steps: int,
    action_steps: int,
    metrics: Sequence[str] = (),
    on_end: Callable[[Episode, list[Observation]], None] = lambda episode, observations: None,
    keep_observations: bool = False,
) -> list[Episode]:
    """Run one episode per seed, as many at a time as there are environments.

    Every slot replans at the same moment, so the policy sees one batch; each executes `action_steps` actions of its
    plan. An episode's randomness (its environment's and its policy's) comes from its own seed alone.

    Args:
        on_end: called with each episode when it ends or crashes, and with its observations (before the first step and
            after each) if `keep_observations`, else an empty list.

    Returns:
        the episodes, in the order of `seeds`.

    Raises:
        RuntimeError: the policy returned an action that is not finite.
        ValueError: a plan is shorter than `action_steps`.
    """
    seeds = list(seeds)
    todo = deque(seeds)
    running: dict[int, Episode] = {}
    observations: dict[int, list[Observation]] = {}
    finished: dict[int, Episode] = {}

    def observe(slot: int, observation: Observation) -> None:
        session.observe(observation, slot=slot)
        if keep_observations:
            observations[slot].append(observation)

    def end(slot: int, crash: Crash | None = None) -> None:
        episode = running.pop(slot)
        episode.crashed = crash.reason if crash else None
        finished[episode.seed] = episode
        on_end(episode, observations.pop(slot))

    while todo or running:
        free = [slot for slot in range(len(envs)) if slot not in running]
        starts = {slot: todo.popleft() for slot in free[: len(todo)]}
        for slot, answer in envs.reset(starts).items():
            running[slot], observations[slot] = Episode(starts[slot]), []
            if isinstance(answer, Crash):
                end(slot, answer)
                continue
            session.reset(slot=slot, seed=starts[slot], text=instruction_of(answer))
            observe(slot, answer)

        slots = sorted(running)
        if not slots:
            continue
        chunks = {}
        for slot, plan in zip(slots, session.plan(slots), strict=True):
            episode = running[slot]
            if not np.isfinite(plan).all():
                raise RuntimeError(f"the policy's plan is not finite: seed {episode.seed}, step {episode.steps}")
            if len(plan) < action_steps:
                raise ValueError(f"action_steps is {action_steps}, but the policy plans only {len(plan)} actions")
            chunks[slot] = plan[: min(action_steps, max_steps - episode.steps)]  # (n, D)
        for slot, answer in envs.step(chunks).items():
            if isinstance(answer, Crash):
                end(slot, answer)
                continue
            for step in answer:
                running[slot].add(step, metrics)
                observe(slot, step.observation)
            if answer[-1].terminated or answer[-1].truncated or running[slot].steps >= max_steps:
                end(slot)
    return [finished[seed] for seed in seeds]
