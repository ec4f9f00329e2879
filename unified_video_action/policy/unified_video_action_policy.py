"""UVA as a policy: frames and states in, actions or frames out, by any of the task modes (paper, section III-D)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.model.diffusion import Generators
from unified_video_action.model.inputs import ModelInputs
from unified_video_action.model.masking import TrainingDraws, draw_training
from unified_video_action.model.task_modes import TASK_MODES, TaskMode
from unified_video_action.model.uva import UVA, Generated, Targets
from unified_video_action.policy.base import BasePolicy, Observation, ObservationSpec
from unified_video_action.policy.config import PolicyConfig
from unified_video_action.text.clip import ClipText
from unified_video_action.vae.base import FrameCodec

CHANGE = "change_"  # normaliser's field that scales changes of a camera's latents


class UnifiedVideoActionPolicy(BasePolicy):
    """The model with its frame codec and normaliser.

    Args:
        model: the network; the only part that is trained and saved.
        codec: frozen frame codec.
        normalizer: fields `action` and one for each low-dimensional observation.
        observations: names of what the policy reads.
        text: makes features of instructions; None: they are given.
        trained: names of the task modes that it is trained in; None: all.
    """

    def __init__(
        self,
        model: UVA,
        codec: FrameCodec,
        normalizer: Normalizer,
        observations: ObservationSpec,
        config: PolicyConfig | None = None,
        text: ClipText | None = None,
        trained: Iterable[str] | None = None,
    ) -> None:
        super().__init__()
        self.trained = tuple(TASK_MODES[name] for name in (TASK_MODES if trained is None else trained))
        self.model, self.observations, self.config = model, observations, config or PolicyConfig()
        self.text = text
        # Frozen parts move with the policy but are no parameters or weights of it.
        self._frozen = {"codec": codec, "normalizer": normalizer}
        self.horizon, self.action_dim = model.spec.horizon, model.spec.action_dim
        self.action_steps = self.config.action_steps
        if self.action_steps > self.horizon.actions:
            raise ValueError(
                f"PolicyConfig.action_steps {self.action_steps} exceeds the chunk of {self.horizon.actions} actions"
            )
        if self.config.relative_to is not None and self.config.relative_to not in observations.low_dim:
            raise ValueError(
                f"PolicyConfig.relative_to {self.config.relative_to!r} is no low-dim input; "
                f"there are {', '.join(observations.low_dim) or 'none'}"
            )

    @property
    def codec(self) -> FrameCodec:
        return self._frozen["codec"]

    @property
    def normalizer(self) -> Normalizer:
        return self._frozen["normalizer"]

    def _apply(self, fn, *args, **kwargs):
        for module in self._frozen.values():
            module._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    # -- training ------------------------------------------------------------------------------------------------------

    def training_draws(self, seeds: Sequence[int], modes: Sequence[TaskMode]) -> TrainingDraws:
        return draw_training(self.model.spec, self.model.config, seeds, modes)

    def loss_weights(self, batch: Mapping[str, Any], draws: TrainingDraws) -> dict[str, float]:
        weights = self.model.loss_weights(self._targets(batch, with_values=False), draws)
        return {name: float(weight.sum()) for name, weight in weights.items()}

    def forward(
        self, batch: Mapping[str, Any], draws: TrainingDraws, weights: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """Losses of a batch (keys as dataset samples, see the design's contract).

        Returns:
            `loss` and one scalar per term, each its sum over the batch divided by its weight.
        """
        terms = self.model.loss_terms(self._training_inputs(batch), self._targets(batch), draws)
        own = {name: term.weight for name, term in terms.items()}
        losses = {
            # A term with nothing to learn from has a sum of 0 as well.
            name: term.total / torch.as_tensor((weights or own)[name]).clamp(min=1e-8)
            for name, term in terms.items()
        }
        scaled = [self.config.loss_scale.get(name, 1.0) * loss for name, loss in losses.items()]
        return {"loss": sum(scaled, start=torch.zeros((), device=self.device)), **losses}

    def _training_inputs(self, batch: Mapping[str, Any]) -> ModelInputs:
        main, wrist = self.observations.main, self.observations.wrist
        inputs = self.model_inputs({**batch.get("low_dim", {}), "latents": batch["history"], "text": batch.get("text")})
        inputs.future = self._from_newest(main, self._latents(batch["future"][main]), inputs.history)
        if self.model.spec.wrist_output:
            future = self._latents(batch["future"][wrist])
            inputs.wrist_future = self._from_newest(wrist, future, inputs.wrist_history)
        inputs.actions = self.normalized_actions(batch["action"], batch.get("low_dim", {}))
        if self.model.spec.history_actions:
            inputs.history_actions = self.normalized_actions(batch["history_action"], batch.get("low_dim", {}))
        return inputs

    def _targets(self, batch: Mapping[str, Any], with_values: bool = True) -> Targets:
        action_valid = ~batch["action_is_pad"] & batch["has_action"].unsqueeze(1)  # (B, A)
        targets = Targets(~batch["frame_is_pad"], action_valid)
        if with_values and self.model.spec.proprio_output_dim:
            states = batch["future_low_dim"]
            targets.proprio = torch.cat([self.normalizer.normalize(name, states[name]) for name in states], dim=-1)
        if with_values and self.model.spec.auxiliary_dim:
            targets.auxiliary = batch["auxiliary"]
        return targets

    # -- the five modes at inference -----------------------------------------------------------------------------------

    def predict_action(
        self, obs: Observation, generator: Generators = None, sampler: str | None = None
    ) -> dict[str, Tensor]:
        """Policy: actions from history; the video head is not run.

        Args:
            obs: camera name -> uint8 (B, H, 3, h, w), or `latents`: camera -> (B, H, C, h, w) scaled; low-dim name ->
                (B, P, d) raw; `text` (B, d).
            generator: noise, one for the batch or a list with one per row.
            sampler: overrides the configured one, such as "ddim10".

        Returns:
            `action` (B, action_steps, D) and `action_pred` (B, A, D), in the data's units.
        """
        return self.actions_from(self._run("policy", obs, generator, sampler), obs)

    def predict_video(
        self, obs: Observation, generator: Generators = None, sampler: str | None = None
    ) -> dict[str, Tensor]:
        """Video model: `frames` uint8 (B, F, 3, h, w) from history."""
        return self._frames(self._run("video", obs, generator, sampler))

    def predict_forward_dynamics(
        self, obs: Observation, actions: Tensor, generator: Generators = None, sampler: str | None = None
    ) -> dict[str, Tensor]:
        """Forward dynamics: `frames` uint8 (B, F, 3, h, w) from history and actions (B, A, D) in the data's units."""
        return self._frames(self._run("forward_dynamics", obs, generator, sampler, actions=actions))

    @torch.no_grad()
    def predict_states(self, obs: Observation, actions: Tensor, generator: Generators = None) -> Tensor:
        """Forward dynamics of states: auxiliary targets (B, H+F, K) from history and actions (B, A, D) in the data's
        units, for one pass of the transformer.

        Raises:
            ValueError: the model has no auxiliary head.
        """
        self.require_trained("forward_dynamics")
        if not self.model.spec.auxiliary_dim:
            raise ValueError("this policy predicts no states: train one with task.shape_meta.auxiliary_dim above 0")
        inputs = self.model_inputs(obs, generator)
        inputs.actions = self.normalized_actions(actions.to(self.device), obs)
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
        return self.actions_from(
            self._run("inverse_dynamics", obs, generator, sampler, future=future, hide_history=hide_history), obs
        )

    def predict_action_and_video(
        self, obs: Observation, generator: Generators = None, sampler: str | None = None
    ) -> dict[str, Tensor]:
        """Policy with planner: `action`, `action_pred` and `frames`, of one joint latent, or (`plan_first`) the actions
        of the policy and then the frames by forward dynamics."""
        if self.config.plan_first:
            plan = self.predict_action(obs, generator, sampler)
            return {**plan, **self.predict_forward_dynamics(obs, plan["action_pred"], generator, sampler)}
        made = self._run("policy_and_video", obs, generator, sampler)
        return {**self.actions_from(made, obs), **self._frames(made)}

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Features (n, text_dim) of instructions.

        Raises:
            ValueError: there is nothing to encode them with. FileNotFoundError: its weights are not there.
        """
        if self.text is None:
            raise ValueError(f"instructions {list(instructions)}: no text encoder is configured; add +text=clip")
        return self.text.encode(instructions).to(self.device)

    @torch.no_grad()
    def encode(self, frames: Tensor, generator: Generators = None) -> Tensor:
        """uint8 frames (B, T, 3, h, w) -> scaled latents (B, T, C, h', w')."""
        return self.codec.encode(frames.to(self.device), generator)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, T, C, h, w) -> uint8 frames (B, T, 3, H, W) at the codec's image size."""
        return ((self.codec.decode(latents.float()) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def require_trained(self, name: str) -> None:
        """Refuse a task mode in which this policy's answer would be noise.

        Raises:
            ValueError: no mode that it was trained in has the same inputs and learns the same.
        """
        mode = TASK_MODES[name]
        alike = [other for other in self.trained if other.inputs == mode.inputs]
        frames, actions = (any(getattr(other, what) for other in alike) for what in ("learns_frames", "learns_actions"))
        if not alike or mode.learns_frames > frames or mode.learns_actions > actions:
            raise ValueError(
                f"this policy was not trained in the mode {name}, so its answer would be noise; train one with "
                f"training.mode_mix.quotas.{name} above 0, as training=joint has it (it was trained in "
                f"{', '.join(other.name for other in self.trained)})"
            )

    # -- in and out ----------------------------------------------------------------------------------------------------

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
    ) -> Generated:
        self.require_trained(mode)
        inputs = self.model_inputs(obs, generator)
        if inputs.history.shape[1] != self.horizon.history:
            raise ValueError(
                f"{self.observations.main}: {inputs.history.shape[1]} frames of history given, "
                f"the policy needs {self.horizon.history}"
            )
        if actions is not None:
            inputs.actions = self.normalized_actions(actions.to(self.device), obs)
        if future is not None:
            main = self.observations.main
            inputs.future = self._from_newest(main, self._latents(future[main], generator), inputs.history)
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
        )
        return self.whole_frames(made, inputs)

    def whole_frames(self, made: Generated, inputs: ModelInputs) -> Generated:
        """What the model made, with its frames as latents (B, F, C, h, w) in place of changes from the newest one."""
        if self.config.relative_frames and made.frames is not None:
            main, wrist = self.observations.main, self.observations.wrist
            made.frames = made.frames / self.normalizer.scale(CHANGE + main) + inputs.history[:, -1:]
            if made.wrist_frames is not None:
                newest = inputs.wrist_history[:, -1:]
                made.wrist_frames = made.wrist_frames / self.normalizer.scale(CHANGE + wrist) + newest
        return made

    def _from_newest(self, camera: str, future: Tensor, history: Tensor) -> Tensor:
        """Future latents (B, F, C, h, w) as the model sees them; the inverse of `whole_frames`."""
        if not self.config.relative_frames:
            return future
        return (future - history[:, -1:]) * self.normalizer.scale(CHANGE + camera)

    def model_inputs(self, obs: Observation, generator: Generators = None) -> ModelInputs:
        """The part of the model's inputs that is observed: history frames, states, instruction.

        Raises:
            ValueError: an observation is missing.
        """
        spec, names = self.model.spec, self.observations
        views = obs.get("latents") or obs
        for name in names.cameras:
            if name not in views:
                raise ValueError(f"observation {name!r} is missing; given are {', '.join(map(str, views))}")
        inputs = ModelInputs(self._latents(views[names.main], generator))
        if spec.wrist_input:
            inputs.wrist_history = self._latents(views[names.wrist], generator)
        if spec.proprio_dim:
            inputs.proprio = torch.cat([self._state(name, obs) for name in names.low_dim], dim=-1)  # (B, P, d)
        if spec.history_actions and obs.get("history_action") is not None:
            inputs.history_actions = self.normalized_actions(obs["history_action"].to(self.device), obs)
        if spec.text_dim:
            if obs.get("text") is None:
                raise ValueError("observation 'text' is missing: this policy follows instructions")
            inputs.text = obs["text"].to(self.device)
        return inputs

    def _state(self, name: str, obs: Observation) -> Tensor:
        if name not in obs:
            raise ValueError(f"observation {name!r} is missing; given are {', '.join(map(str, obs))}")
        state = obs[name].to(self.device)[:, -self.observations.low_dim_steps :]  # (B, P, d)
        return self.normalizer.normalize(name, state)

    def _latents(self, frames: Tensor, generator: Generators = None) -> Tensor:
        """Frames become latents; latents pass."""
        return self.encode(frames, generator) if frames.dtype == torch.uint8 else frames.to(self.device)

    def _origin(self, obs: Mapping[str, Tensor]) -> Tensor | float:
        """What actions are relative to: the newest value of an observation (B, 1, D), or nothing."""
        name = self.config.relative_to
        return 0.0 if name is None else obs[name].to(self.device)[:, -1:]

    def normalized_actions(self, actions: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Actions (B, n, D) in the data's units as the model sees them; the inverse of `actions_from`."""
        return self.normalizer.normalize("action", actions - self._origin(obs))

    def actions_from(self, made: Generated, obs: Observation) -> dict[str, Tensor]:
        """What the model made as `action` and `action_pred`, in the data's units."""
        chunk = self.normalizer.unnormalize("action", made.actions.float()) + self._origin(obs)  # (B, A, D)
        return {"action": chunk[:, : self.action_steps], "action_pred": chunk}

    def _frames(self, made: Generated) -> dict[str, Tensor]:
        frames = {"frames": self.decode(made.frames), "latents": made.frames}
        if made.wrist_frames is not None:
            frames["wrist_frames"] = self.decode(made.wrist_frames)
        return frames
