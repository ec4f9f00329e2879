"""UVA as a policy: frames and states in, actions or frames out, by any of the task modes (paper, section III-D)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unified_video_action.dataset.build import DataSettings
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.instantiate import build_dataclass, check_node, instantiate
from unified_video_action.model.config import ModelConfig
from unified_video_action.model.losses import loss_weights
from unified_video_action.model.masking import TrainingCorruption, draw_corruption
from unified_video_action.model.task_modes import TASK_MODES, TaskMode, covered
from unified_video_action.model.uva import UVA
from unified_video_action.noise import Generators
from unified_video_action.policy.base import BasePolicy, Config, Keep, LossTerm, Observation, Share
from unified_video_action.policy.config import UVAConfig
from unified_video_action.policy.uva_transform import CHANGE, UVATransform, model_spec
from unified_video_action.spec import TaskSpec
from unified_video_action.text.clip import ClipText
from unified_video_action.vae.base import FrameCodec, Moments

log = logging.getLogger(__name__)
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class UnifiedVideoActionPolicy(BasePolicy):
    """The model with its frozen frame codec and its normaliser, which has fields `action` and one for each state."""

    CONFIG = UVAConfig
    GROUPS = frozenset({"model", "vae", "text"})
    heads = {"video": ("video_heads.",), "action": ("action_head.",)}

    def __init__(
        self,
        task: TaskSpec,
        model: UVA,
        codec: FrameCodec,
        normalizer: Normalizer,
        config: UVAConfig | None = None,
        text: ClipText | None = None,
    ) -> None:
        super().__init__(task, normalizer, config or UVAConfig(), text, codec=codec)
        self.model, self.loss_scale = model, self.config.loss_scale
        self.trained = model.config.mode_mix.trained
        for head, sampler in zip((model.action_head, *model.video_heads[:1]), self.config.samplers()):
            head.diffusion.chain(sampler)  # raises where they do not fit
        self.transform = UVATransform(task, codec, normalizer, self.config)

    @property
    def imagines(self) -> bool:
        if self.config.plan_first:
            return self.can("policy") and self.can("forward_dynamics")
        return self.can("policy_and_video")

    def can(self, mode: str) -> bool:
        return covered(TASK_MODES[mode], self.trained)

    @property
    def codec(self) -> FrameCodec:
        return self._frozen["codec"]

    # -- from configurations -------------------------------------------------------------------------------------------

    @classmethod
    def check_config(cls, config: Config) -> None:
        super().check_config(config)
        build_dataclass(ModelConfig, config["model"], "model")
        check_node(config["vae"], FrameCodec, "vae")
        policy, data = cls.read_config(config), build_dataclass(DataSettings, config["data"], "data")
        if policy.relative_frames and data.frames != "latents":
            raise ValueError(f"policy.relative_frames needs data.frames=latents, got {data.frames}")

    @classmethod
    def build_encoders(cls, config: Config) -> dict[str, Any]:
        """`codec` and, for tasks with language, `text`."""
        return {**super().build_encoders(config), "codec": instantiate(config["vae"], FrameCodec, "vae")}

    @classmethod
    def fit_normalizer(cls, config: Config, dataset: WindowDataset) -> Normalizer:
        """Of states and actions and, for relative frames, of changes of latents, whose size is looked at anyway."""
        policy = cls.read_config(config)
        fields = dataset.fit_normalizer(policy.relative_to).fields()
        if build_dataclass(DataSettings, config["data"], "data").frames == "latents":
            for camera, measured in dataset.measure_latents().items():
                if not 0.5 < measured.level < 2:
                    log.warning(
                        "%s: the latents' mean square is %.2f, where noise is made for 1: the codec was fitted to "
                        "other pictures; fit one to these (scripts/train_codec.py), or set its scale",
                        camera,
                        measured.level,
                    )
                if policy.relative_frames:
                    scale = max(measured.change, 1e-6) ** -0.5
                    fields[CHANGE + camera] = {"scale": torch.tensor([scale]), "offset": torch.zeros(1)}
        return Normalizer(fields)

    @classmethod
    def from_config(
        cls, config: Config, task: TaskSpec, normalizer: Normalizer, encoders: Mapping[str, Any] | None = None
    ) -> UnifiedVideoActionPolicy:
        encoders = encoders or cls.build_encoders(config)
        codec, network = encoders["codec"], build_dataclass(ModelConfig, config["model"], "model")
        model = UVA(model_spec(task, codec.latent_shape, network.patch_size), network)
        return cls(task, model, codec, normalizer, cls.read_config(config), encoders["text"])

    # -- training ------------------------------------------------------------------------------------------------------

    def prepare(self, batch: dict[str, Any], share: Share) -> dict[str, Any]:
        """Draw task modes, masks and noise."""
        modes = self.model.config.mode_mix.modes(share.step, share.batch_size, share.seed)
        return self.with_modes(batch, modes[share.first :][: len(batch["seed"])])

    def with_modes(self, batch: dict[str, Any], modes: Sequence[TaskMode]) -> dict[str, Any]:
        """A batch with masks and noise for these task modes, one for each sample, drawn from the samples' seeds.

        Dynamics is learnt from actions as they were carried out, a policy from what the demonstrator chose.
        """
        if "executed_action" in batch:
            dynamics = torch.tensor([mode.sees_actions or mode.future == "seen" for mode in modes])[:, None, None]
            batch = {**batch, "action": torch.where(dynamics, batch["executed_action"], batch["action"])}
        corruption = draw_corruption(self.model.spec, self.model.config, batch["seed"].tolist(), modes)
        if "has_action" in batch:  # actions that are not known are hidden in every mode
            corruption.sees_actions &= batch["has_action"]
            if corruption.levels is not None:
                corruption.levels[~batch["has_action"], 1] = 1.0
        corruption = {name: value for name, value in vars(corruption).items() if value is not None}
        return {**batch, "corruption": corruption, "task_mode": [mode.name for mode in modes]}

    def validation_batches(self, batch: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """One for each task mode that is trained."""
        return {f"{mode.name}/": self.with_modes(batch, [mode] * len(batch["seed"])) for mode in self.trained}

    def loss_weights(self, batch: Mapping[str, Any]) -> dict[str, float]:
        targets, corruption = (
            self.transform.targets(batch, with_values=False),
            TrainingCorruption(**batch["corruption"]),
        )
        weights = loss_weights(self.model.spec, targets, corruption)
        return {name: float(weight.sum()) for name, weight in weights.items()}

    def loss_terms(self, batch: Mapping[str, Any]) -> dict[str, LossTerm]:
        corruption = TrainingCorruption(**batch["corruption"])
        return self.model.loss_terms(self.transform.training_inputs(batch), self.transform.targets(batch), corruption)

    # -- the five modes at inference -----------------------------------------------------------------------------------

    def predict_action(
        self,
        obs: Observation,
        generator: Generators = None,
        sampler: str | None = None,
        keep: Keep | None = None,
        chunks: int = 1,
    ) -> dict[str, Tensor]:
        """Policy: actions from history, all chunks of a row of one joint latent; the video heads are not run. Frames
        may also be moments or scaled latents (B, H, C, h, w)."""
        return self._run("policy", obs, generator, sampler, keep=keep, chunks=chunks)

    def predict_video(
        self, obs: Observation, generator: Generators = None, sampler: str | None = None
    ) -> dict[str, Tensor]:
        """Video model: from history `frames` uint8 (B, F, 3, h, w) of the first camera, `views` camera -> frames, and
        `latents` (B, P, F, C, h, w)."""
        return self._run("video", obs, generator, sampler)

    def predict_forward_dynamics(
        self, obs: Observation, actions: Tensor, generator: Generators = None, sampler: str | None = None
    ) -> dict[str, Tensor]:
        """Forward dynamics: as `predict_video`, from history and actions (B, A, D) in the data's units."""
        return self._run("forward_dynamics", obs, generator, sampler, actions=actions)

    @torch.no_grad()
    def predict_states(self, obs: Observation, actions: Tensor, generator: Generators = None) -> Tensor:
        """Forward dynamics of states: auxiliary targets (B, H+F, K) from history and actions (B, A, D) in the data's
        units, for one pass of the transformer. Raises ValueError for a model without an auxiliary head."""
        self.require_trained("forward_dynamics")
        if not self.model.spec.auxiliary_dim:
            raise ValueError("this policy predicts no states: train one with task.shape_meta.auxiliary_dim above 0")
        inputs = self.transform.observed(obs, generator)
        inputs.actions = self.transform.normalized_actions(actions.to(self.device), obs)
        return self.model.states(inputs, TASK_MODES["forward_dynamics"]).float()

    def predict_inverse_dynamics(
        self,
        obs: Observation,
        future: Mapping[str, Tensor],
        hide_history: bool | None = None,
        generator: Generators = None,
        sampler: str | None = None,
    ) -> dict[str, Tensor]:
        """Inverse dynamics: `action`, `action_pred` from future frames, camera -> (B, F, 3, h, w) uint8 or latents.

        `hide_history` shows the model future frames only, as the paper's code does; None: as this mode was trained,
        which is hidden unless model.masking.inverse_history is above 0.
        """
        if hide_history is None:
            hide_history = not self.model.config.masking.inverse_history
        return self._run("inverse_dynamics", obs, generator, sampler, future=future, hide_history=hide_history)

    def predict_action_and_video(
        self, obs: Observation, generator: Generators = None, sampler: str | None = None
    ) -> dict[str, Tensor]:
        """Policy with planner: `action`, `action_pred` and `frames`, of one joint latent, or (`plan_first`) the actions
        of the policy and then the frames by forward dynamics."""
        if self.config.plan_first:
            plan = self.predict_action(obs, generator, sampler)
            return {**plan, **self.predict_forward_dynamics(obs, plan["action_pred"], generator, sampler)}
        return self._run("policy_and_video", obs, generator, sampler)

    @torch.no_grad()
    def encode(self, frames: Tensor, generator: Generators = None) -> Tensor:
        """uint8 frames (B, T, 3, h, w) -> scaled latents (B, T, C, h', w')."""
        return self.codec.latents(self.encode_frames(frames), generator)

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Moments:
        """uint8 frames (B, T, 3, h, w) -> moments (B, T, C, h', w') of the codec's posterior."""
        return Moments(*self.model.run("VAE encode", self.codec.moments, frames))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, T, C, h, w) -> uint8 frames (B, T, 3, H, W) at the codec's image size."""

        def decode(latents: Tensor) -> Tensor:
            return ((self.codec.decode(latents.float()) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

        return self.model.run("VAE decode", decode, latents)

    def accelerated(self, precision: str = "no") -> UnifiedVideoActionPolicy:
        """See `UVA.accelerated`."""
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
        fast = copy.copy(self)
        fast._modules = {**self._modules, "model": self.model.accelerated(PRECISIONS[precision])}
        return fast

    def require_trained(self, name: str) -> None:
        """Raise ValueError for a task mode in which this policy's answer would be noise."""
        if not self.can(name):
            raise ValueError(
                f"this policy was not trained in the mode {name}, so its answer would be noise; train one with "
                f"model.mode_mix.quotas.{name} above 0, as training=joint has it (it was trained in "
                f"{', '.join(other.name for other in self.trained)})"
            )

    @torch.no_grad()
    def _run(
        self,
        mode: str,
        obs: Observation,
        generator: Generators,
        sampler: str | None,
        actions: Tensor | None = None,
        future: Mapping[str, Tensor] | None = None,
        hide_history: bool | None = None,
        keep: Keep | None = None,
        chunks: int = 1,
    ) -> dict[str, Any]:
        self.require_trained(mode)
        inputs = self.transform.observed(obs, generator)
        if actions is not None:
            inputs.actions = self.transform.normalized_actions(actions.to(self.device), obs)
        if future is not None:
            inputs.future = self.transform.future(future, inputs.history, generator)
        if keep is not None:
            keep = self.transform.normalized_actions(keep[0].to(self.device), obs), keep[1].to(self.device)
        for_actions, for_frames = self.config.samplers(sampler)
        made = self.model.sample(
            inputs,
            TASK_MODES[mode],
            sampler=for_actions,
            video_sampler=for_frames,
            iterations=self.config.iterations,
            guidance=self.config.guidance,
            generator=generator,
            hide_history=hide_history,
            keep=keep,
            chunks=chunks,
        )
        found: dict[str, Any] = {}
        if made.actions is not None:
            states = {name: obs[name].repeat_interleave(chunks, 0) for name in self.task.states}
            chunk = self.transform.actions(made.actions, states)  # (B * chunks, A, D)
            found |= {"action": chunk[:, : self.action_steps], "action_pred": chunk}
        if made.frames is not None:
            latents = self.transform.whole_frames(made.frames, inputs.history)
            views = {name: self.decode(latents[:, view]) for view, name in enumerate(self.task.predicted_cameras)}
            found |= {"frames": next(iter(views.values())), "views": views, "latents": latents}
        return found
