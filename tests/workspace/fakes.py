"""A policy and a dataset of a few numbers, with the interfaces of the real ones, for what the loop itself does."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.model.task_modes import TASK_MODES, ModeMix
from unified_video_action.policy.base import BasePolicy, LossTerm, Share
from unified_video_action.spec import Horizon, TaskSpec
from unified_video_action.workspace.loop import Periodic, TrainingLoop
from unified_video_action.workspace.records import Records
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
    from unified_video_action.workspace.accelerator import build_accelerator

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
    from unified_video_action.workspace.checkpoint import optimizer_tensors

    state = loop.state
    average = {f"ema.{name}": value for name, value in state.ema.state_dict().items()}
    return {**state.model.state_dict(), **average, **optimizer_tensors(state.optimizer, state.model)}


def main() -> None:
    """Train in a process of its own: `python fakes.py OUTPUT ...`, also under torchrun."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--sharding", default="none")
    parser.add_argument("--per-batch", action="store_true", help="one task mode for a whole batch")
    parser.add_argument("--kill-at", type=int, help="send this process --send during this step")
    parser.add_argument("--kill-in-write", type=int, help="die while the checkpoint of this step is being written")
    parser.add_argument("--send", default="SIGKILL")
    parser.add_argument("--look-every", type=int, help="steps between two sums of the averaged weights")
    options = parser.parse_args()

    def look(step: int, records: Records | None) -> dict[str, float]:
        assert not loop.state.policy.training
        return {"sum": sum(float(value.abs().sum()) for value in loop.state.policy.model.state_dict().values())}

    logging.basicConfig(level=logging.INFO)
    trainer = trainer_settings(max_steps=options.max_steps, micro_batch=options.micro_batch, sharding=options.sharding)
    training, mix = training_settings(batch_size=options.batch), ModeMix(per_batch=options.per_batch)
    periodic = [Periodic("look", options.look_every, look, together=True)] if options.look_every else []
    loop = build_loop(options.output, training, trainer, dropout=options.dropout, periodic=periodic, mode_mix=mix)
    if options.kill_at is not None:
        step = loop.train_step

        def train_step(*arguments):
            if loop.step == options.kill_at and loop.accelerator.is_main_process:
                os.kill(os.getpid(), getattr(signal, options.send))
            step(*arguments)

        loop.train_step = train_step
    if options.kill_in_write is not None:
        from unified_video_action.workspace import checkpoint

        write = checkpoint.write_safetensors

        def write_and_die(path, tensors):
            write(path, tensors)
            if f"{options.kill_in_write:08d}" in str(path) and path.name == "ema.safetensors":
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.write_safetensors = write_and_die
    loop.run()


if __name__ == "__main__":
    main()
