"""The rollout loop, the same for every simulator and every policy, and what it keeps of an episode."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_video_action.env_runner.simulators import Crash, EnvProcesses, Observation, Step, build_env

if TYPE_CHECKING:
    from unified_video_action.inference.session import PolicySession


@dataclass
class Episode:
    """One rollout from its start seed to its end."""

    seed: int
    steps: int = 0  # control steps executed
    success: bool = False  # `is_success` at any step
    maxima: dict[str, float] = field(default_factory=dict)  # largest value over the steps of each metric asked for
    curve: list[float] = field(default_factory=list)  # score after every step
    crashed: str | None = None  # why its environment was lost
    task: str = ""  # the episode's task, in an environment that has several
    actions: list[list[float]] = field(default_factory=list)  # executed, (D,) each, where observations are kept

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


def instruction_of(observation: Observation) -> str | None:
    """What the environment asks for in words; None where there is no language."""
    return str(observation["instruction"]) if "instruction" in observation else None


def rollout(
    session: PolicySession,
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
            chunks[slot] = plan[: min(action_steps, max_steps - episode.steps)]  # (n, D)
        for slot, answer in envs.step(chunks).items():
            if isinstance(answer, Crash):
                end(slot, answer)
                continue
            for step, action in zip(answer, chunks[slot]):
                running[slot].add(step, metrics)
                observe(slot, step.observation)
                if keep_observations:
                    running[slot].actions.append(action.tolist())
            if answer[-1].ended or running[slot].steps >= max_steps:
                end(slot)
    return [finished[seed] for seed in seeds]


def save_observations(path: Path, observations: Sequence[Observation]) -> None:
    """Keep an episode's observations in one compressed file."""
    stacked = {name: np.stack([observation[name] for observation in observations]) for name in observations[0]}
    np.savez_compressed(path, **stacked)  # each (steps + 1, ...)


def load_observations(path: Path) -> list[Observation]:
    """Observations of an episode: before its first step, and after each."""
    with np.load(path, allow_pickle=False) as stored:
        stacked = dict(stored)
    return [dict(zip(stacked, values)) for values in zip(*stacked.values(), strict=True)]


def time_simulator(config: Mapping[str, Any], steps: int, seed: int = 0) -> dict[str, float]:
    """Time the environment of a task's `env` configuration, alone in this process.

    Args:
        steps: control steps of random actions that are timed. A new episode starts where one ends, and does not count.

    Returns:
        build_s and reset_s; step_ms and its 99th percentile; steps_per_second.
    """
    times: dict[str, list[float]] = {"build": [], "reset": [], "step": []}

    def timed(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments, **options)
        times[name].append(time.perf_counter() - started)
        return result

    env, ended = timed("build", build_env, config), True
    env.action_space.seed(seed)
    try:
        while len(times["step"]) < steps:
            if ended:
                timed("reset", env.reset, seed=seed + len(times["reset"]))
            _, _, terminated, truncated, _ = timed("step", env.step, env.action_space.sample())
            ended = terminated or truncated
    finally:
        env.close()
    return {
        "build_s": times["build"][0],
        "reset_s": float(np.median(times["reset"])),
        "step_ms": 1e3 * float(np.median(times["step"])),
        "step_p99_ms": 1e3 * float(np.quantile(times["step"], 0.99)),
        "steps_per_second": steps / sum(times["step"]),
    }
