"""A policy and a dataset of a few numbers, with the interfaces of the real ones, for what the loop itself does."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.model.task_modes import TASK_MODES, ModeMix
from unified_video_action.policy.base import BasePolicy, LossTerm, Share
from unified_video_action.spec import Horizon, TaskSpec
from unified_video_action.workspace import checkpoint
from unified_video_action.workspace.loop import TrainingLoop
from unified_video_action.workspace.process import build_accelerator
from unified_video_action.workspace.records import Periodic, Records
from unified_video_action.workspace.settings import (
    EmaSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainerSettings,
    TrainingSettings,
)


class Points(Dataset):
    """50 points; the sample's seed moves them a little. `broken` points are NaN."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
        self.x[list(broken)] = torch.nan

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Tensor]:
        jitter = [torch.randn(6, generator=torch.Generator().manual_seed(seed)) for _, seed in keys]
        x = torch.stack([self.x[index] + 0.1 * move for (index, _), move in zip(keys, jitter)])
        index, seed = (torch.tensor(column) for column in zip(*keys))
        return {"x": x, "index": index, "seed": seed}

    def describe(self, index: int) -> str:
        return f"points.zarr, episode {index // 10}, step {index % 10}"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class FakePolicy(BasePolicy):
    """A trunk and two heads, each trained by the samples whose mode asks for it; dropout when wanted."""

    heads = {"video": ("video.",), "action": ("action.",)}

    def __init__(self, dropout: float = 0.0, mode_mix: ModeMix | None = None) -> None:
        task = TaskSpec(Horizon(), (), action_dim=2)
        super().__init__(task, Normalizer.identity({"action": 2}), SimpleNamespace(action_steps=1))
        self.mode_mix = mode_mix or ModeMix()
        layers = [nn.Linear(6, 16), nn.LayerNorm(16), nn.Dropout(dropout), nn.SiLU()]
        self.model = nn.ModuleDict(
            {
                "trunk": nn.Sequential(*layers),
                "blocks": nn.ModuleList(Residual() for _ in range(2)),
                "video": nn.Linear(16, 6),
                "action": nn.Linear(16, 2),
                "idle": nn.Linear(3, 3),
            }
        )

    @classmethod
    def from_config(cls, config, task, normalizer, encoders=None):
        raise NotImplementedError

    def predict_action(self, obs, generator=None, sampler=None, keep=None, chunks=1):
        raise NotImplementedError

    def prepare(self, batch, share: Share):
        modes = self.mode_mix.modes(share.step, share.batch_size, share.seed)
        return self.with_modes(batch, modes[share.first :][: len(batch["seed"])])

    def with_modes(self, batch, modes):
        noise = [torch.randn(6, generator=torch.Generator().manual_seed(seed // 2)) for seed in batch["seed"].tolist()]
        video = [i for i, mode in enumerate(modes) if mode.learns_frames]
        action = [i for i, mode in enumerate(modes) if mode.learns_actions]
        rows = {"video": torch.tensor(video).long(), "action": torch.tensor(action).long()}
        return {**batch, "noise": torch.stack(noise), "rows": rows, "task_mode": [mode.name for mode in modes]}

    def validation_batches(self, batch):
        modes = [TASK_MODES[name] for name, share in self.mode_mix.quotas.items() if share > 0]
        return {f"{mode.name}/": self.with_modes(batch, [mode] * len(batch["seed"])) for mode in modes}

    def loss_weights(self, batch) -> dict[str, float]:
        counts = {"video": 6.0 * len(batch["rows"]["video"]), "action": float(len(batch["rows"]["action"]))}
        return {name: count for name, count in counts.items() if count}

    def loss_terms(self, batch) -> dict[str, LossTerm]:
        hidden = self.model["trunk"](batch["x"] + batch["noise"])
        for block in self.model["blocks"]:
            hidden = block(hidden)
        truths = {"video": batch["x"], "action": batch["x"][:, :2]}
        weights, terms = self.loss_weights(batch), {}
        for name in weights:
            error = (self.model[name](hidden) - truths[name])[batch["rows"][name]]
            terms[name] = LossTerm(error.square().sum(), torch.tensor(weights[name]))
        return terms


def training_settings(**changes) -> TrainingSettings:
    values = {
        "steps": 20,
        "batch_size": 12,
        "optimizer": OptimizerSettings(learning_rate=1e-2, clip=1.0),
        "schedule": ScheduleSettings(warmup_steps=3),
        "ema": EmaSettings(),
    }
    return TrainingSettings(**{**values, **changes})


def trainer_settings(**changes) -> TrainerSettings:
    values = {"device": "cpu", "checkpoint_every": 5, "log_every": 1, "tensorboard": False}
    return TrainerSettings(**{**values, **changes})


def build_loop(
    output_dir: Path,
    training: TrainingSettings | None = None,
    trainer: TrainerSettings | None = None,
    dropout: float = 0.0,
    dataset: Dataset | None = None,
    periodic=(),
    mode_mix: ModeMix | None = None,
) -> TrainingLoop:
    training, trainer = training or training_settings(), trainer or trainer_settings()
    torch.manual_seed(0)
    policy = FakePolicy(dropout, mode_mix)
    return TrainingLoop(
        policy,
        dataset or Points(),
        training,
        trainer,
        seed=7,
        output_dir=output_dir,
        accelerator=build_accelerator(trainer),
        open_records=lambda step: Records(output_dir, trainer, step),
        periodic=periodic,
        files={"config.yaml": "name: fake\n"},
    )


def metrics(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def weights(loop: TrainingLoop) -> dict[str, Tensor]:
    """Everything that training leaves: weights, their average, the optimiser's state."""
    return {f"{file}/{name}": value for file, group in loop.state.tensors().items() for name, value in group.items()}


def agree_but_for_rounding(mine: Path, theirs: Path, rtol: float = 1e-3, atol: float = 1e-5) -> None:
    """Two whole runs: losses and what is left at the end. Sums are taken in another order, hence the tolerance."""
    for a, b in zip(metrics(mine), metrics(theirs), strict=True):
        assert a.keys() == b.keys()
        for name in ("train/loss", "train/video", "train/action", "train/gradient_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), a["step"]
    for file in ("model.safetensors", "ema.safetensors", "trainer_state.safetensors"):
        a, b = (load_file(folder / "checkpoints" / "latest" / file) for folder in (mine, theirs))
        assert a.keys() == b.keys()
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, rtol=rtol, atol=atol)


def train(
    output_dir: Path,
    dropout: float = 0.0,
    batch_size: int = 12,
    per_batch: bool = False,
    kill_at: int | None = None,
    send: str = "SIGKILL",
    kill_in_write: int | None = None,
    look_every: int | None = None,
    **trainer,
) -> None:
    """Train, in a process of its own.

    Args:
        kill_at: the step during which the first process sends itself the signal `send`.
        kill_in_write: the step while whose checkpoint is being written it dies.
        look_every: steps between two sums of the averaged weights.
    """

    def look(step: int, records: Records | None) -> dict[str, float]:
        assert not loop.state.policy.training
        return {"sum": sum(float(value.abs().sum()) for value in loop.state.policy.model.state_dict().values())}

    training, mix = training_settings(batch_size=batch_size), ModeMix(per_batch=per_batch)
    periodic = [Periodic("look", look_every, look, together=True)] if look_every else []
    loop = build_loop(output_dir, training, trainer_settings(**trainer), dropout, periodic=periodic, mode_mix=mix)
    step, write = loop.train_step, checkpoint.write_safetensors

    def train_step(*arguments):
        if loop.step == kill_at and loop.accelerator.is_main_process:
            os.kill(os.getpid(), getattr(signal, send))
        step(*arguments)

    def write_and_die(path: Path, tensors: dict[str, Tensor]) -> None:
        write(path, tensors)
        if kill_in_write and f"{kill_in_write:08d}" in str(path) and path.name == "ema.safetensors":
            os.kill(os.getpid(), signal.SIGKILL)

    loop.train_step, checkpoint.write_safetensors = train_step, write_and_die
    loop.run()
