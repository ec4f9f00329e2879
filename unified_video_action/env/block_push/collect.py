"""Demonstrations of block pushing by the scripted expert, one episode per attempt number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unified_video_action.env.block_push.env import BlockPushEnv, frame_size
from unified_video_action.env.block_push.expert import ScriptedExpert, Variety
from unified_video_action.env.block_push.layout import HIGH, LOW
from unified_video_action.env.collecting import Episode, option


@dataclass(frozen=True)
class Collector:
    """Calling it with an attempt number gives that attempt's episode; the same one in any process and any order.

    The order of the blocks and the square of each are drawn anew for every episode, so that from the same start there
    are four ways. A disturbance leads the expert off its way while its own choices are what is recorded.
    """

    seed: int = option(0, "decides starts, orders, squares and noise")
    image_size: int = option(96, "height of the frames in pixels; their width is 4/3 of it")
    max_steps: int = option(350, "control steps after which an attempt is given up")
    action_noise: float = option(0.002, "metres, standard deviation of a slow drift added to every action")
    disturbance: float = option(0.0, "metres, as --action-noise, of what is done, but not of what is recorded")

    def __post_init__(self) -> None:
        frame_size(self.image_size)
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if not self.disturbance >= 0:
            raise ValueError(f"disturbance must be >= 0 metres, got {self.disturbance}")
        Variety(self.action_noise)

    def __call__(self, attempt: int) -> Episode:
        rng = np.random.default_rng([self.seed, attempt])
        start_seed, expert_seed = (int(number) for number in rng.integers(2**31, size=2))
        expert = ScriptedExpert(expert_seed, Variety(self.action_noise))
        env = BlockPushEnv(self.image_size)
        rows: dict[str, list[np.ndarray]] = {"img": [], "effector": [], "action": [], "state": []}
        try:
            observation, info = env.reset(seed=start_seed)
            success, drift = False, np.zeros(2)
            while not success and len(rows["action"]) < self.max_steps:
                action = expert.act(info["state"])
                now = (observation["image"], observation["effector"], action, info["state"].astype(np.float32))
                for row, value in zip(rows.values(), now, strict=True):
                    row.append(value)
                drift = 0.8 * drift + 0.6 * rng.normal(0, self.disturbance, 2)
                observation, _, success, _, info = env.step(np.clip(action + drift, LOW, HIGH))
        finally:
            env.close()
        if not success:
            return Episode({}, {}, {}, success=False)
        meta = {"order": np.array(expert.order), "squares": np.array(expert.squares)}
        steps = float(len(rows["action"]))
        return Episode({name: np.stack(row) for name, row in rows.items()}, meta, {"steps": steps}, success=True)
