"""Stand-ins for a policy and its `PolicySession`, for the toy environment."""

from types import SimpleNamespace

import numpy as np
import torch


class ToySession:
    """Stands in for `PolicySession`: walks towards the goal with noise from the episode's own generator."""

    task = SimpleNamespace(horizon=SimpleNamespace(future_offsets=(4, 8, 12, 16)))

    def __init__(self, policy=None, slots=1, action_steps=None, sampler=None, precision="no", planner=None, world=None):
        self.plan_seconds = []
        self.generators, self.latest, self.seen = [None] * slots, [None] * slots, [0] * slots

    def reset(self, slot=0, seed=0, text=None):
        self.generators[slot], self.seen[slot] = np.random.default_rng(seed), 0

    def observe(self, obs, slot=0):
        self.latest[slot] = obs
        self.seen[slot] += 1

    def plan(self, slots=None):
        noise = np.stack([self.generators[slot].normal(0, 0.03, (16, 1)) for slot in slots])
        start = np.stack([self.latest[slot]["position"] for slot in slots])[:, None]  # (n, 1, 1)
        return (noise + 0.02 * (1 + start)).astype(np.float32)  # (n, A, 1)

    def imagine(self, slots=None):
        return np.stack([np.stack([self.latest[slot]["image"]] * 4) for slot in slots])  # (n, F, H, W, 3)


class ToyPolicy(torch.nn.Module):
    """What a runner asks of a policy besides its session."""

    task = SimpleNamespace(horizon=ToySession.task.horizon, camera_names=("image",), action_names=("walk (m)",))
    config = SimpleNamespace(plan_first=True)
    imagines = True
