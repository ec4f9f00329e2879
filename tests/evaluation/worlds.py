"""A store of simulated episodes, and policies of which is known how well they imagine: without weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import zarr
from torch import Tensor

from unified_video_action.dataset.pusht import PushTDataset
from unified_video_action.env.pusht.env import render_states
from unified_video_action.env.pusht.reader import PushTReader
from unified_video_action.env.pusht.table import Table
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.spec import Camera, Horizon, TaskSpec


def write_pushes(path: Path, episodes: int = 6, length: int = 40) -> Path:
    """Episodes in which the agent goes through the T from different sides, as the simulator has them."""
    rng, states, actions = np.random.default_rng(1), [], []
    for episode in range(episodes):
        table, turn = Table(), 2 * np.pi * episode / episodes
        way = np.array([np.cos(turn), np.sin(turn)])
        block = np.array([256.0, 220.0]) + rng.uniform(-20, 20, 2)
        table.place(tuple(np.array([256.0, 256.0]) - 150 * way), (*block, rng.uniform(0, 2 * np.pi)))
        for step in range(length):
            states.append([*table.agent, *table.pose])
            target = np.array([256.0, 256.0]) + (8 * step - 150) * way + 20 * np.sin(step / 5) * way[::-1]
            actions.append(target)
            table.move(tuple(target))
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    arrays = {"img": render_states(np.array(states)), "action": np.array(actions, np.float32)}
    arrays["state"] = np.array(states, np.float32)
    arrays["state"][:, 4] %= 2 * np.pi
    data, meta = root.create_group("data"), root.create_group("meta")
    for name, array in arrays.items():
        data.create_array(name, data=array, chunks=(16, *array.shape[1:]))
    ends = length * np.arange(1, episodes + 1)
    meta.create_array("episode_ends", data=ends, chunks=ends.shape)
    return path


def held_out(path: Path) -> PushTDataset:
    dataset = PushTDataset(str(path), Horizon(), val_ratio=0.5, low_dim_steps=1).validation()
    dataset.use_frames()
    return dataset


class Oracle:
    """A policy that knows the simulator: it imagines what that shows, and reads the agent's way from frames.

    Its plan is to go to the right. Latents are frames / 255.
    """

    device = torch.device("cpu")
    task = TaskSpec(Horizon(), (Camera("image", (96, 96), True),), action_dim=2, states={"agent_pos": 2}, state_steps=1)
    action_steps = 4
    trained = tuple(TASK_MODES.values())
    codec = SimpleNamespace(image_size=96)
    config = SimpleNamespace(relative_to="agent_pos")
    reader = PushTReader()

    def encode(self, frames: Tensor) -> Tensor:
        return frames.float() / 255

    def decode(self, latents: Tensor) -> Tensor:
        return (latents * 255).round().to(torch.uint8)

    def predict_action(self, obs, generator):
        noise = torch.stack([torch.randn(2, generator=each) for each in generator])[:, None]
        step = torch.arange(1, 17)[None, :, None]
        return {"action_pred": obs["agent_pos"][:, -1:] + step * torch.tensor([6.0, 0.0]) + 3 * noise}

    def predict_forward_dynamics(self, obs, actions, generator):
        now = self.reader(self.decode(obs["image"][:, -1]).movedim(1, -1).numpy())
        frames = self.reader.simulate(now.state, actions.numpy(), self.task.horizon.future_offsets, 96)
        return {"frames": torch.from_numpy(frames).movedim(-1, -3)}

    def predict_action_and_video(self, obs, generator):
        plan = self.predict_action(obs, generator)
        return plan | self.predict_forward_dynamics(obs, plan["action_pred"], generator)

    predict_video = predict_action_and_video

    def predict_inverse_dynamics(self, obs, future, generator):
        seen = self.reader(self.decode(future["image"]).movedim(2, -1).numpy())
        way = torch.from_numpy(np.concatenate([obs["agent_pos"][:, -1:].numpy(), seen.agent], axis=1)).float()
        path = torch.nn.functional.interpolate(way.transpose(1, 2), 17, mode="linear", align_corners=True)
        return {"action_pred": path.transpose(1, 2)[:, 1:]}


class Unconditional(Oracle):
    """Frames do not depend on actions, nor actions on frames."""

    def predict_forward_dynamics(self, obs, actions, generator):
        return {"frames": self.decode(obs["image"][:, -1:]).repeat(1, 4, 1, 1, 1)}

    def predict_inverse_dynamics(self, obs, future, generator):
        return self.predict_action(obs, generator)


class Blank(Oracle):
    """Imagines empty tables."""

    def predict_forward_dynamics(self, obs, actions, generator):
        return {"frames": torch.full((len(actions), 4, 3, 96, 96), 255, dtype=torch.uint8)}
