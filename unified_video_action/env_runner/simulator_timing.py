"""How fast a simulator runs, alone in this process: building it, starting an episode, one control step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from unified_video_action.env_runner.worker import build_env


def time_simulator(config: Mapping[str, Any], steps: int, seed: int = 0) -> dict[str, float]:
    """Time the environment of a task's `env` configuration.

    Args:
        steps: control steps that are timed, of random actions; a new episode starts where one ends, and does not count.

    Returns:
        build_s and reset_s; step_ms and its 99th percentile; steps_per_second.
    """
    started = time.perf_counter()
    env = build_env(config)
    build = time.perf_counter() - started
    resets, times = [], []

    def reset() -> None:
        started = time.perf_counter()
        env.reset(seed=seed + len(resets))
        resets.append(time.perf_counter() - started)

    try:
        env.action_space.seed(seed)
        reset()
        while len(times) < steps:
            action = env.action_space.sample()
            started = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(action)
            times.append(time.perf_counter() - started)
            if terminated or truncated:
                reset()
    finally:
        env.close()
    return {
        "build_s": build,
        "reset_s": float(np.median(resets)),
        "step_ms": 1e3 * float(np.median(times)),
        "step_p99_ms": 1e3 * float(np.quantile(times, 0.99)),
        "steps_per_second": len(times) / sum(times),
    }
