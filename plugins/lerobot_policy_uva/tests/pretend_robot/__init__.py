"""A robot of LeRobot without hardware: PushT with a camera `top` and the agent's position as two joints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.robots import Robot, RobotConfig

from unified_video_action.env.pusht.env import PushTEnv

JOINTS = ("x.pos", "y.pos")


@RobotConfig.register_subclass("pusht")
@dataclass
class PretendRobotConfig(RobotConfig):
    log: Path  # .npz, written at the end: actions, what was observed just before each, and the seed of torch


class PretendRobot(Robot):
    config_class = PretendRobotConfig
    name = "pusht"
    observation_features = {"top": (96, 96, 3)} | dict.fromkeys(JOINTS, float)
    action_features = dict.fromkeys(JOINTS, float)
    is_connected, is_calibrated = False, True
    cameras = ()  # whose pictures threads would save

    def __init__(self, config: PretendRobotConfig) -> None:
        super().__init__(config)
        self.config, self.env, self.steps = config, PushTEnv(), []

    def connect(self, calibrate: bool = True) -> None:
        self.seen, _ = self.env.reset(seed=100_000)
        self.is_connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        return {"top": self.seen["image"]} | dict(zip(JOINTS, self.seen["agent_pos"].tolist()))

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        values = np.array([action[joint] for joint in JOINTS], np.float32)
        self.steps.append({**self.seen, "action": values})
        self.seen, *_ = self.env.step(values)
        return action

    def disconnect(self) -> None:
        logged = {key: np.stack([step[key] for step in self.steps]) for key in self.steps[0]}
        np.savez(self.config.log, seed=torch.initial_seed(), **logged)
        self.is_connected = False
