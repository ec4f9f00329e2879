"""The interface between a policy and the rest of the project: training, sessions, simulators, robots and servers.

Frames are uint8 RGB (B, T, C, H, W); observations are mappings from the names in `shape_meta` to histories of
`task.horizon.history` frames or `task.state_steps` states, oldest first; actions are in the units of the data.

A policy is chosen by `policy._target_` in a configuration. It is one file of this folder and one of `config/policy`;
nothing else knows its class. What only some policies can do is asked for by name (`hasattr(policy, "predict_video")`):

* `encode_frames(frames (B, T, 3, H, W)) -> tuple of tensors (B, T, ...)`: sessions keep it and give it for the frames.
* `predict_video`, `predict_forward_dynamics`, `predict_action_and_video`: imagined frames.
* `predict_inverse_dynamics`: actions between frames. `predict_states`: imagined states, for planners.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from unified_video_action.dataset.build import DataSettings
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.instantiate import build_dataclass, check_node, instantiate
from unified_video_action.model.losses import LossTerm
from unified_video_action.noise import Generators
from unified_video_action.spec import TaskSpec
from unified_video_action.text.clip import ClipText

INSTRUCTIONS = "instructions.json"  # in a checkpoint: features of the instructions that were trained on
Observation = Mapping[str, Any]
Config = Mapping[str, Any]
Keep = tuple[Tensor, Tensor]  # actions (B, A, D) in the data's units, and by how much a plan keeps to each (B, A)


@dataclass(frozen=True)
class Share:
    """Which samples of a training step a batch holds."""

    step: int
    first: int  # index of the batch's first sample among the step's
    batch_size: int  # samples of the step, over all processes
    seed: int  # of the run


class BasePolicy(nn.Module, ABC):
    """A policy that trains on batches of windows and acts on histories of observations.

    Args:
        config: what `policy` in a configuration says, a dataclass of the kind `CONFIG` with `action_steps`.
        text: makes features of instructions; None: they are given, or the task has none.
        frozen: further modules that move with the policy but are not parameters or weights of it, such as a codec.

    Raises:
        ValueError: more action_steps than a chunk has actions; actions relative to a state that there is not.
    """

    CONFIG: ClassVar[type]
    GROUPS: ClassVar[frozenset[str]] = frozenset()  # groups of a configuration that it reads, besides task and policy
    STORED: ClassVar[bool] = True  # it has weights, which are trained and lie in checkpoints
    model: nn.Module  # what is trained and saved; everything else of a policy is frozen
    action_steps: int  # actions of a chunk that are executed before the next one is asked for
    loss_scale: Mapping[str, float] = {}  # factors of loss terms; 1 where not named
    # Loss term -> how the names of parameters begin that it alone trains; a step without it leaves them as they are.
    heads: Mapping[str, tuple[str, ...]] = {}
    imagines: bool = False  # has learned frames, so `predict_action_and_video` can be asked for those of its plans

    def __init__(
        self, task: TaskSpec, normalizer: Normalizer, config: Any, text: ClipText | None = None, **frozen: nn.Module
    ) -> None:
        super().__init__()
        self.task, self.config, self.text, self.action_steps = task, config, text, config.action_steps
        self._frozen = {"normalizer": normalizer, **frozen}
        if config.action_steps > task.horizon.actions:
            raise ValueError(
                f"policy.action_steps {config.action_steps} exceeds the chunk of {task.horizon.actions} actions"
            )
        origin = getattr(config, "relative_to", None)
        if origin not in (None, *task.states):
            raise ValueError(f"policy.relative_to={origin!r} is not a state of {', '.join(task.states) or 'none'}")

    def can(self, mode: str) -> bool:
        """Whether a task mode is what it has learned, so that its answer is not noise."""
        return mode == "policy"

    @property
    def normalizer(self) -> Normalizer:
        return self._frozen["normalizer"]

    def _apply(self, fn, *args, **kwargs):
        for module in self._frozen.values():
            module._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    # -- from configurations -------------------------------------------------------------------------------------------

    @classmethod
    def read_config(cls, config: Config) -> Any:
        """`policy` of a configuration as a `CONFIG`. Raises ValueError for a key or value that it does not take."""
        settings = {key: value for key, value in config["policy"].items() if key != "_target_"}
        return build_dataclass(cls.CONFIG, settings, "policy")

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Raise ValueError for values that the policy does not accept; nothing is loaded."""
        cls.read_config(config)
        if config.get("text"):
            check_node(config["text"], ClipText, "text")

    @classmethod
    def build_encoders(cls, config: Config) -> dict[str, Any]:
        """Frozen parts that the training data is prepared with, `text` and `codec`; `from_config` gets them."""
        return {"text": instantiate(config["text"], ClipText, "text") if config.get("text") else None}

    @classmethod
    def open_data(cls, config: Config, dataset: WindowDataset, encoders: Mapping[str, Any], progress: bool) -> None:
        """Give a dataset what its samples are to hold: frames or their latents, which are built once, as `data.frames`
        says, and features of instructions. Raises ValueError where the configuration and the data do not fit."""
        _open_text(dataset, encoders.get("text"), TaskSpec.parse(config["task"]).text_dim)
        settings, codec = build_dataclass(DataSettings, config["data"], "data"), encoders.get("codec")
        if settings.frames != "latents":
            dataset.use_frames(settings.cache_dir, cached=settings.frames == "cached", progress=progress)
        elif codec is None:
            raise ValueError(f"data.frames=latents: {cls.__name__} learns from frames; choose cached or decoded")
        else:
            dataset.use_latents(dataset.latents(codec, settings.cache_dir, settings.n_views, progress=progress))

    @classmethod
    def fit_normalizer(cls, config: Config, dataset: WindowDataset) -> Normalizer:
        """Fit actions, states and whatever else is normalised, to opened data."""
        return dataset.fit_normalizer()

    @classmethod
    @abstractmethod
    def from_config(
        cls, config: Config, task: TaskSpec, normalizer: Normalizer, encoders: Mapping[str, Any] | None = None
    ) -> Self:
        """An untrained policy. `encoders` are made by `build_encoders` when None."""

    def files(self, dataset: WindowDataset) -> dict[str, str]:
        """Text files of a checkpoint, besides configuration, normaliser and weights: content by name."""
        return {} if self.text is None else {INSTRUCTIONS: self.text.to_json(dataset.instructions)}

    def read_files(self, folder: Path) -> None:
        """Read them back from a checkpoint's folder, where they are there."""
        known = folder / INSTRUCTIONS
        if known.is_file() and self.text is not None:
            self.text.remember(known.read_text(), str(known))

    # -- training ------------------------------------------------------------------------------------------------------

    def prepare(self, batch: dict[str, Any], share: Share) -> dict[str, Any]:
        """Add everything random to a batch of windows, on the CPU: a function of the samples' seeds and of `share`."""
        return batch

    def validation_batches(self, batch: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Batches to measure the losses of held-out windows on; their names come before those of the losses."""
        return {"": self.prepare(batch, Share(0, 0, len(batch["seed"]), 0))}

    @abstractmethod
    def loss_weights(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """How much each loss term of a prepared batch weighs, known before the forward pass."""

    @abstractmethod
    def loss_terms(self, batch: Mapping[str, Any]) -> dict[str, LossTerm]:
        """Losses of a prepared batch."""

    def forward(self, batch: Mapping[str, Any], weights: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """`loss` and its terms, each the batch's sum divided by `weights` (its own weights when None)."""
        terms = self.loss_terms(batch)
        weights = weights or {name: term.weight for name, term in terms.items()}
        losses = {  # a term with nothing to learn from has a sum of 0 as well
            name: term.total / torch.as_tensor(weights[name]).clamp(min=1e-8) for name, term in terms.items()
        }
        scaled = [self.loss_scale.get(name, 1.0) * loss for name, loss in losses.items()]
        return {"loss": sum(scaled, start=torch.zeros((), device=self.device)), **losses}

    # -- acting --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def predict_action(
        self,
        obs: Observation,
        generator: Generators = None,
        sampler: str | None = None,
        keep: Keep | None = None,
        chunks: int = 1,
    ) -> dict[str, Tensor]:
        """Plan.

        Args:
            obs: camera name -> uint8 (B, H, 3, h, w), or what `encode_frames` made of them; state name -> (B, P, d);
                `text` (B, text_dim) for tasks with language; `history_action` (B, A, D) where the task has it.
            generator: noise, one for the batch or a list with one per row.
            sampler: overrides the configured one, such as "ddim10".
            keep: actions that the plan keeps to, as far as their weights say (an inpainting prefix).
            chunks: plans for each row.

        Returns:
            `action` (B * chunks, action_steps, D), to execute, and `action_pred` (B * chunks, A, D).

        Raises:
            ValueError: an observation that is missing.
        """

    def accelerated(self, precision: str = "no") -> BasePolicy:
        """A policy that computes the same sooner, on weights that no longer change; `precision` of products and of what
        lies between them is "no" (float32), "bf16" or "fp16". Raises ValueError for one that it cannot compute in."""
        if precision != "no":
            raise ValueError(f"precision={precision!r}: {type(self).__name__} computes in float32 alone; take no")
        return self

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Features (n, text_dim) of instructions. Raises ValueError without an encoder, FileNotFoundError without its
        weights."""
        if self.text is None:
            raise ValueError(f"instructions {list(instructions)}: no text encoder is configured; add +text=clip")
        return self.text.encode(instructions).to(self.device)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def _open_text(dataset: WindowDataset, text: ClipText | None, width: int) -> None:
    if not width:
        return
    if text is None:
        raise ValueError(f"task.shape_meta.text_dim={width}, but there is no text encoder: add +text=clip")
    if not dataset.instructions:
        raise ValueError(f"task.shape_meta.text_dim={width}, but the data in task.dataset has no instructions")
    features = text.encode(dataset.instructions)
    if features.shape[1] != width:
        raise ValueError(f"task.shape_meta.text_dim={width}, but text features have {features.shape[1]} values")
    dataset.use_text(features)


def normalized_states(task: TaskSpec, normalizer: Normalizer, obs: Observation, device: torch.device) -> Tensor:
    """All states of a task side by side, (B, P, d); rows that have none (`has_low_dim`) show the middle of each."""
    states = [obs[name].to(device)[:, -task.state_steps :] for name in task.states]
    states = torch.cat(list(map(normalizer.normalize, task.states, states)), dim=-1)
    has = obs.get("has_low_dim")
    return states if has is None else states * has.to(device)[:, None, None]


def action_origin(policy_config: Any, obs: Observation, device: torch.device) -> Tensor | float:
    """What actions are relative to: the newest value (B, 1, D) of `relative_to`, or nothing."""
    name = policy_config.relative_to
    return 0.0 if name is None else obs[name].to(device)[:, -1:]


def require_observations(obs: Observation, names: Sequence[str]) -> None:
    """Raise ValueError for an observation that is missing."""
    for name in names:
        if obs.get(name) is None:
            raise ValueError(f"observation {name!r} is missing; given are {', '.join(map(str, obs))}")
