"""Demonstrations of PushT by the scripted expert, one episode per attempt number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unified_video_action.env.collecting import Episode, option
from unified_video_action.env.pusht.env import DEFAULT_GOAL, TABLE_SIZE, PushTEnv
from unified_video_action.env.pusht.expert import ScriptedExpert, Variety
from unified_video_action.env.pusht.goals import random_goal
from unified_video_action.env.pusht.renderer import render_states

GOALS = ("fixed", "random")


@dataclass(frozen=True)
class Collector:
    """Calling it with an attempt number gives that attempt's episode; the same one in any process and any order.

    A disturbance leads the expert off its way while its own choices are what is recorded, so that a policy learns the
    way back (DART, Laskey et al. 2017). Such an episode's actions do not replay to its states.
    """

    seed: int = option(0, "decides starts, goals and the expert's choices")
    goal: str = option("fixed", "fixed, or random: another goal pose in every episode")
    image_size: int = option(96, "pixels")
    max_steps: int = option(300, "control steps after which an attempt is given up")
    action_noise: float = option(1.0, "pixels, standard deviation of a slow drift added to every action")
    choice: float = option(4.0, "how freely the expert chooses among good plans, in control steps")
    mistakes: float = option(0.05, "chance of a random push that the expert then makes good")
    disturbance: float = option(0.0, "pixels, as --action-noise, of what is done, but not of what is recorded")

    def __post_init__(self) -> None:
        if self.goal not in GOALS:
            raise ValueError(f"goal must be one of {', '.join(GOALS)}, got {self.goal!r}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if self.disturbance < 0:
            raise ValueError(f"disturbance must be >= 0, got {self.disturbance}")
        self.variety()

    def variety(self) -> Variety:
        return Variety(self.action_noise, self.choice, self.mistakes)

    def __call__(self, attempt: int) -> Episode:
        rng = np.random.default_rng([self.seed, attempt])
        start_seed, expert_seed = (int(number) for number in rng.integers(2**31, size=2))
        goal = random_goal(rng) if self.goal == "random" else np.array(DEFAULT_GOAL)
        env = PushTEnv(goal=goal, observe_image=False)
        expert = ScriptedExpert(goal, expert_seed, self.variety())
        _, info = env.reset(seed=start_seed)
        states, actions, coverage, success = [], [], info["coverage"], info["is_success"]
        drift = np.zeros(2)
        while not success and len(actions) < self.max_steps:
            states.append(info["state"])
            actions.append(expert.act(info["state"]))
            drift = 0.8 * drift + 0.6 * rng.normal(0, self.disturbance, 2)
            _, _, success, _, info = env.step(np.clip(actions[-1] + drift, 0, TABLE_SIZE).astype(np.float32))
            coverage = max(coverage, info["coverage"])
        if not success or not actions:  # nothing can be learnt from a start on the goal
            return Episode({}, {}, {}, success=False)
        arrays = {
            "img": render_states(np.array(states), goal, self.image_size),
            "action": np.array(actions, np.float32),
            "state": np.array(states, np.float32),
        }
        return Episode(arrays, {"goal": goal}, {"coverage": coverage}, success=True)
