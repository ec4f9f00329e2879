"""Diffusion Policy (Chi et al. 2023), the baseline of the paper's Table I: actions from observations, no video.

`network: unet` is DP-C, `network: transformer` DP-T. Departures from the published code: the chunk starts at `now`, not
at the oldest observation, and actions beyond an episode's end do not count in the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.model.samplers import Sampler
from unified_video_action.noise import Generators, randn
from unified_video_action.policy.base import (
    BasePolicy,
    Config,
    Keep,
    LossTerm,
    Observation,
    Share,
    action_origin,
    normalized_states,
    require_observations,
)
from unified_video_action.policy.diffusion_networks import CausalTransformer, ConditionalUnet1d, ObservationEncoder
from unified_video_action.spec import TaskSpec, require_integers
from unified_video_action.text.clip import ClipText

RESNET_STRIDE = 4  # pixels for each cell of its first stage's feature map; twice as many in each further stage
RELATIVE_BOUND = 5.0  # on denoised relative actions, which are normalised by their deviation
SCHEDULERS = {"ancestral": DDPMScheduler, "ddim": DDIMScheduler}


@dataclass(frozen=True)
class DiffusionConfig:
    """Everything about the policy; the defaults are the published ones for PushT."""

    network: str = "unet"  # unet (DP-C) or transformer (DP-T)
    action_steps: int = 8  # actions executed of each chunk
    sampler: str = "ancestral100"  # ancestral (DDPM) or ddim, and the number of steps
    diffusion_steps: int = 100  # length of the training chain
    prediction: str = "epsilon"  # epsilon, or sample: smooth plans sooner (beyond the published policy)
    encoder: str = "resnet18"  # of frames, one for each camera: a resnet, or any other name that timm knows
    stages: int = 4  # of a resnet that are used; fewer: keypoints on a finer map (beyond the published policy)
    pretrained: bool = False  # start the encoder from timm's weights
    crop: int | None = 76  # side of the frames' crops, pixels: random in training, central while acting; null: none
    image_size: int | None = None  # to which crops are resized, for encoders that want one size
    widths: tuple[int, ...] = (512, 1024, 2048)  # unet: channels of its levels
    kernel: int = 5  # unet: taps of its convolutions
    step_embed: int = 128  # unet: width of the denoising step's embedding
    width: int = 256  # transformer
    depth: int = 8
    heads: int = 4
    dropout: float = 0.3  # transformer
    relative_to: str | None = None  # state whose newest value actions are relative to (beyond the published policy)

    def __post_init__(self) -> None:
        if self.network not in ("unet", "transformer"):
            raise ValueError(f"DiffusionConfig.network must be unet or transformer, got {self.network!r}")
        require_integers(self, "action_steps", "diffusion_steps", "kernel", "step_embed", "width", "depth", "heads")
        if self.prediction not in ("epsilon", "sample"):
            raise ValueError(f"DiffusionConfig.prediction must be epsilon or sample, got {self.prediction!r}")
        if ":" in self.encoder:  # timm would contact a repository, or read a folder, that a checkpoint has named
            raise ValueError(f"DiffusionConfig.encoder must be the name of a model of timm, got {self.encoder!r}")
        if self.stages not in (1, 2, 3, 4):
            raise ValueError(f"DiffusionConfig.stages must be 1 to 4, got {self.stages!r}")
        _sampler(self.sampler, self.diffusion_steps)


class DiffusionNetwork(nn.Module):
    """What is trained: the encoder of observations and the denoiser."""

    def __init__(self, task: TaskSpec, config: DiffusionConfig) -> None:
        super().__init__()
        self.encoder = ObservationEncoder(task, config.encoder, config.pretrained, config.image_size, config.stages)
        chunk, cond, history = (task.action_dim, task.horizon.actions), self.encoder.width, task.horizon.history
        if config.network == "unet":
            widths = tuple(config.widths)
            self.denoiser = ConditionalUnet1d(*chunk, cond * history, widths, config.kernel, config.step_embed)
        else:
            size = config.width, config.depth, config.heads, config.dropout
            self.denoiser = CausalTransformer(*chunk, cond, history, *size)


class DiffusionPolicy(BasePolicy):
    """Denoises a chunk of actions, given the history of frames and states. Raises ValueError for a configuration that
    does not fit the task."""

    CONFIG = DiffusionConfig
    GROUPS = frozenset({"text"})

    def __init__(
        self, task: TaskSpec, normalizer: Normalizer, config: DiffusionConfig, text: ClipText | None = None
    ) -> None:
        super().__init__(task, normalizer, config, text)
        if task.states and task.state_steps != task.horizon.history:
            raise ValueError(
                f"task.shape_meta.obs: DiffusionPolicy reads states at every step of the history, got "
                f"{task.state_steps} of {task.horizon.history}; leave out `steps`"
            )
        for camera in task.cameras:
            if config.crop is not None and config.crop > min(camera.size):
                raise ValueError(f"policy.crop={config.crop} is larger than the frames of {camera.name}, {camera.size}")
            side = config.image_size or config.crop or min(camera.size)
            cell = RESNET_STRIDE * 2 ** (config.stages - 1)
            if "resnet" in config.encoder and side <= cell:
                raise ValueError(
                    f"policy.crop: of {side} px frames a resnet leaves one cell, whose position is fixed; take more "
                    f"than {cell}, a larger policy.image_size, or another policy.encoder"
                )
        self.model = DiffusionNetwork(task, config)
        self._schedule = DDPMScheduler(
            num_train_timesteps=config.diffusion_steps,  # by name: from_config forgets what is given by position
            beta_schedule="squaredcos_cap_v2",
            prediction_type=config.prediction,
            clip_sample_range=_bound(normalizer) if config.relative_to is None else RELATIVE_BOUND,
        )

    @classmethod
    def fit_normalizer(cls, config: Config, dataset: WindowDataset) -> Normalizer:
        return dataset.fit_normalizer(cls.read_config(config).relative_to)

    @classmethod
    def from_config(
        cls, config: Config, task: TaskSpec, normalizer: Normalizer, encoders: Mapping[str, Any] | None = None
    ) -> DiffusionPolicy:
        encoders = encoders or cls.build_encoders(config)
        return cls(task, normalizer, cls.read_config(config), encoders["text"])

    # -- training ------------------------------------------------------------------------------------------------------

    def prepare(self, batch: dict[str, Any], share: Share) -> dict[str, Any]:
        """Crop the frames, and draw denoising steps and noise."""
        seeds, (steps, dim) = batch["seed"].tolist(), batch["action"].shape[1:]
        t, noise = torch.empty(len(seeds), dtype=torch.long), torch.empty(len(seeds), steps, dim)
        whole, side = batch["history"], self.config.crop
        cropped = {} if side is None else {name: v.new_empty(*v.shape[:-2], side, side) for name, v in whole.items()}
        for row, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            t[row] = torch.randint(self.config.diffusion_steps, (), generator=generator)
            noise[row].normal_(generator=generator)
            for name, crops in cropped.items():
                offsets = torch.tensor(whole[name].shape[-2:]) - side + 1
                corners = torch.rand(crops.shape[1], 2, generator=generator) * offsets  # (H, 2)
                for step, (y, x) in enumerate(corners.long().tolist()):
                    crops[row, step] = whole[name][row, step, :, y : y + side, x : x + side]
        return {**batch, "history": cropped or whole, "t": t, "noise": noise}

    def loss_weights(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"action": float(_counted(batch).sum())}

    def loss_terms(self, batch: Mapping[str, Any]) -> dict[str, LossTerm]:
        """The squared error of the noise (or of the actions), averaged over the dimensions of an action."""
        cond = self.condition(batch)
        noise, t, counted = batch["noise"], batch["t"], _counted(batch)
        actions = self._normalized(batch["action"], batch["low_dim"])
        noisy = self._schedule.add_noise(actions, noise, t)
        wanted = noise if self.config.prediction == "epsilon" else actions
        error = (self.model.denoiser(noisy, t, cond).float() - wanted).square().mean(-1)  # (B, A)
        return {"action": LossTerm.of(error, counted)}

    def condition(self, batch: Mapping[str, Any]) -> Tensor:
        """What the denoiser knows of a batch of windows, (B, H, width)."""
        also = {name: batch.get(name) for name in ("text", "has_low_dim")}
        return self._condition({**batch["low_dim"], **batch["history"], **also})

    # -- acting --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict_action(
        self,
        obs: Observation,
        generator: Generators = None,
        sampler: str | None = None,
        keep: Keep | None = None,
        chunks: int = 1,
    ) -> dict[str, Tensor]:
        cond = self._condition(obs).repeat_interleave(chunks, 0)  # (B*K, H, width)
        if isinstance(generator, list):
            generator = [each for each in generator for _ in range(chunks)]
        wanted = _sampler(sampler or self.config.sampler, self.config.diffusion_steps)
        scheduler = SCHEDULERS[wanted.kind].from_config(self._schedule.config)
        scheduler.set_timesteps(wanted.steps, device=self.device)
        shape = len(cond), self.task.horizon.actions, self.task.action_dim
        first = x = randn(shape, generator, torch.empty((), device=self.device))
        if keep is not None:
            kept = self._normalized(keep[0].to(self.device), obs).repeat_interleave(chunks, 0)
            weight = keep[1].to(self.device).repeat_interleave(chunks, 0).unsqueeze(-1)  # (B*K, A, 1)
        for i, t in enumerate(scheduler.timesteps):
            output = self.model.denoiser(x, t.expand(len(x)), cond).float()
            options = {} if wanted.kind == "ddim" else {"generator": generator}
            x = scheduler.step(output, t, x, **options).prev_sample
            if keep is not None:  # at the noise level that the next step begins with
                last = i + 1 == len(scheduler.timesteps)
                known = kept if last else scheduler.add_noise(kept, first, scheduler.timesteps[i + 1].expand(len(x)))
                x = torch.lerp(x, known, weight)
        chunk = self.normalizer.unnormalize("action", x)
        states = {name: obs[name].repeat_interleave(chunks, 0) for name in self.task.states}
        chunk = chunk + action_origin(self.config, states, self.device)  # (B*K, A, D)
        return {"action": chunk[:, : self.action_steps], "action_pred": chunk}

    def _normalized(self, actions: Tensor, obs: Observation) -> Tensor:
        """Actions (B, A, D) in the data's units as the denoiser sees them."""
        return self.normalizer.normalize("action", actions - action_origin(self.config, obs, self.device))

    def _condition(self, obs: Observation) -> Tensor:
        """(B, H, width)"""
        require_observations(obs, self.task.observations)
        frames = [self._frames(obs[name]) for name in self.task.camera_names]
        steps = frames[0].shape[1]
        if steps != self.task.horizon.history:
            raise ValueError(f"{steps} frames of history given, the policy needs {self.task.horizon.history}")
        states = frames[0].new_empty(*frames[0].shape[:2], 0)  # (B, H, d)
        if self.task.states:
            states = normalized_states(self.task, self.normalizer, obs, self.device)
        text = obs.get("text")
        return self.model.encoder(frames, states, None if text is None else text.to(self.device))

    def _frames(self, frames: Tensor) -> Tensor:
        """uint8 (B, H, 3, h, w) -> (B, H, 3, crop, crop) in [-1, 1]; frames of that size are cropped already."""
        side = self.config.crop
        if side is not None and frames.shape[-2:] != (side, side):
            y, x = ((length - side) // 2 for length in frames.shape[-2:])
            frames = frames[..., y : y + side, x : x + side]
        return frames.to(self.device).float() / 127.5 - 1


def _bound(normalizer: Normalizer) -> float:
    """On denoised actions: how far the recorded ones reach, normalised. 1 where they lie in [-1, 1], up to rounding, or
    are not known."""
    known = normalizer.stats.get("action", {})
    ends = [normalizer.normalize("action", known[end]) for end in ("min", "max") if end in known]
    reach = max((end.abs().max().item() for end in ends), default=1.0)
    return reach if reach > 1.01 else 1.0


def _counted(batch: Mapping[str, Any]) -> Tensor:
    """(B, A): 1 for actions that are recorded."""
    return (~batch["action_is_pad"] & batch["has_action"].unsqueeze(1)).float()


def _sampler(text: str, longest: int) -> Sampler:
    sampler = Sampler.parse(text)
    if sampler.kind not in SCHEDULERS:
        raise ValueError(f"sampler {text}: Diffusion Policy takes {' or '.join(SCHEDULERS)}")
    if sampler.steps > longest:
        raise ValueError(f"sampler {text} has more steps than the chain of {longest}")
    return sampler
