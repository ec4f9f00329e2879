"""A stand-in for the parts of LeRobot that the plug-in uses: LeRobot itself wants older versions of other packages than
are pinned here. `make lerobot` runs the same tests with it."""

from __future__ import annotations

import dataclasses
import enum
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model
from torch import nn


class FeatureType(enum.StrEnum):
    STATE, VISUAL, ENV, ACTION = "STATE", "VISUAL", "ENV", "ACTION"


class NormalizationMode(enum.StrEnum):
    IDENTITY = "IDENTITY"


@dataclasses.dataclass
class PolicyFeature:
    type: FeatureType
    shape: tuple[int, ...]


@dataclasses.dataclass
class PreTrainedConfig:
    input_features: dict[str, PolicyFeature] | None = dataclasses.field(default_factory=dict)
    output_features: dict[str, PolicyFeature] | None = dataclasses.field(default_factory=dict)
    device: str = "cpu"
    pretrained_path: Path | None = None

    def __post_init__(self) -> None:
        pass

    @classmethod
    def register_subclass(cls, name: str) -> Any:
        return lambda kind: kind

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        return {key: each for key, each in self.input_features.items() if each.type is FeatureType.VISUAL}

    @property
    def action_feature(self) -> PolicyFeature | None:
        return self.output_features.get("action")


class PreTrainedPolicy(nn.Module):
    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config

    def save_pretrained(self, folder: Path) -> None:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps(dataclasses.asdict(self.config)))
        save_model(self, str(Path(folder) / "model.safetensors"))

    @classmethod
    def from_pretrained(cls, folder: Path) -> PreTrainedPolicy:
        values = json.loads((Path(folder) / "config.json").read_text())
        for side in ("input_features", "output_features"):
            values[side] = {
                name: PolicyFeature(FeatureType(each["type"]), tuple(each["shape"]))
                for name, each in values[side].items()
            }
        policy = cls(cls.config_class(**values))
        return cls._load_as_safetensor(policy, str(Path(folder) / "model.safetensors"), "cpu", False).eval()


@dataclasses.dataclass
class AdamWConfig:
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    grad_clip_norm: float


@dataclasses.dataclass
class DiffuserSchedulerConfig:
    name: str
    num_warmup_steps: int


class LeRobotDataset:
    """Episodes in memory, found again by their folder."""

    written: dict[str, LeRobotDataset] = {}

    def __init__(
        self, repo_id: str, root: Path, delta_timestamps: dict[str, list[float]], video_backend: str | None = None
    ) -> None:
        self.meta, self.episodes = self.written[str(root)].meta, self.written[str(root)].episodes
        self.steps = {key: [round(each * self.meta.fps) for each in times] for key, times in delta_timestamps.items()}
        self.places = [(episode, now) for episode in self.episodes for now in range(len(episode))]

    @classmethod
    def create(cls, repo_id: str, fps: int, features: dict, root: Path, use_videos: bool) -> LeRobotDataset:
        made = cls.written[str(root)] = cls.__new__(cls)
        made.meta, made.episodes, made.frames = SimpleNamespace(repo_id=repo_id, root=root, fps=fps), [], []
        made.meta.features = features
        return made

    def add_frame(self, frame: dict[str, Any]) -> None:
        self.frames.append(frame)

    def save_episode(self) -> None:
        self.episodes.append(self.frames)
        self.frames = []

    def finalize(self) -> None:
        frames = [frame for episode in self.episodes for frame in episode]
        vectors = {key: np.stack([frame[key] for frame in frames]) for key in ("observation.state", "action")}
        ends = {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}
        self.meta.stats = {
            key: {end: make(each, axis=0) for end, make in ends.items()} for key, each in vectors.items()
        }
        self.meta.tasks = SimpleNamespace(index=list(dict.fromkeys(frame["task"] for frame in frames)))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        episode, now = self.places[index]
        item: dict[str, Any] = {"index": torch.tensor(index), "task": episode[now]["task"]}
        for key, steps in self.steps.items():
            rows = [min(max(now + step, 0), len(episode) - 1) for step in steps]
            values = torch.from_numpy(np.stack([episode[row][key] for row in rows]))
            item[key] = values.movedim(-1, 1) / 255 if values.dtype == torch.uint8 else values
            item[f"{key}_is_pad"] = torch.tensor([row != now + step for row, step in zip(rows, steps)])
        return item


def resolve_delta_timestamps(config: Any, meta: Any) -> dict[str, list[float]]:
    indices = {key: config.observation_delta_indices for key in meta.features if key.startswith("observation.")}
    return {
        key: [each / meta.fps for each in steps]
        for key, steps in (indices | {"action": config.action_delta_indices}).items()
    }


def make_act_pre_post_processors(config: Any, dataset_stats: Any = None) -> tuple[Any, Any]:
    return (SimpleNamespace(save_pretrained=lambda folder, config_filename: None),) * 2


MODULES = {
    "lerobot.configs.policies": (PreTrainedConfig,),
    "lerobot.configs.types": (FeatureType, NormalizationMode, PolicyFeature),
    "lerobot.datasets.factory": (resolve_delta_timestamps,),
    "lerobot.datasets.lerobot_dataset": (LeRobotDataset,),
    "lerobot.optim.optimizers": (AdamWConfig,),
    "lerobot.optim.schedulers": (DiffuserSchedulerConfig,),
    "lerobot.policies.act.processor_act": (make_act_pre_post_processors,),
    "lerobot.policies.pretrained": (PreTrainedPolicy,),
}


@contextmanager
def stood_in() -> Iterator[None]:
    """Within the context `import lerobot` finds this file's classes, if it would find nothing."""
    before = set(sys.modules)
    if importlib.util.find_spec("lerobot") is None:
        for name, members in MODULES.items():
            module = sys.modules[name] = types.ModuleType(name)
            vars(module).update({member.__name__: member for member in members})
    yield
    for name in set(sys.modules) - before:
        if name.startswith("lerobot"):
            del sys.modules[name]
