"""A small environment, importable (without torch) by the process it runs in."""

import os
import signal
import time

import gymnasium as gym
import numpy as np
from gymnasium import spaces

EXITS, RAISES, HANGS, SEGFAULTS = 13, 14, 15, 16  # seeds whose third step goes wrong
SIZE = 24


class ToyEnv(gym.Env):
    """An agent on a line from 0 to 1 walks by its action (1,); the score is how far it came, success is at 0.9."""

    observation_space = spaces.Dict(
        {"image": spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8), "position": spaces.Box(0, 1, (1,), np.float32)}
    )
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        self.position = self.np_random.uniform(0, 0.3)
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 3:
            self._go_wrong()
        self.position = float(np.clip(self.position + action[0], 0, 1))
        success = self.position >= 0.9
        info = {"score": self.position, "is_success": success, "coverage": self.position / 2, "label": "text"}
        return self._observe(), 0.0, success, False, info

    def _go_wrong(self):
        if self.seed == EXITS:
            os._exit(3)
        if self.seed == RAISES:
            raise ArithmeticError("the table fell over")
        if self.seed == HANGS:
            time.sleep(60)
        if self.seed == SEGFAULTS:
            os.kill(os.getpid(), signal.SIGSEGV)

    def _observe(self):
        image = np.full((SIZE, SIZE, 3), 255, np.uint8)
        column = round(self.position * (SIZE - 4))
        image[10:14, column : column + 4] = (65, 105, 225)
        return {"image": image, "position": np.array([self.position], np.float32)}


class TaskedEnv(ToyEnv):
    """Two tasks with an instruction each, by the parity of the seed."""

    @property
    def task(self):
        return "odd" if self.seed % 2 else "even"

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "task": self.task}

    def _observe(self):
        return {**super()._observe(), "instruction": f"walk to the {self.task} end"}


class BrokenEnv(gym.Env):
    def __init__(self):
        raise FileNotFoundError("scene.xml")


class ForgetfulEnv(ToyEnv):
    """Leaves the score out of its info."""

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {"is_success": info["is_success"]}
