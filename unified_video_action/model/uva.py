"""UVA: the joint latent of MAR, decoded by diffusion heads; one loss and one sampler for all task modes."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unified_video_action.model.config import ModelConfig
from unified_video_action.model.diffusion import Generators
from unified_video_action.model.heads import ActionHead, VideoHead
from unified_video_action.model.inputs import ModelInputs, Visibility, patchify, unpatchify
from unified_video_action.model.mar import MAR
from unified_video_action.model.masking import TrainingDraws, generation_schedule, spatial_order
from unified_video_action.model.samplers import Sampler
from unified_video_action.model.task_modes import TaskMode
from unified_video_action.spec import ModelSpec


@dataclass
class Targets:
    """What the heads learn from, and which of it counts."""

    frame_valid: Tensor  # (B, F) bool
    action_valid: Tensor  # (B, A) bool
    proprio: Tensor | None = None  # (B, A, proprio_output_dim)
    auxiliary: Tensor | None = None  # (B, H+F, auxiliary_dim)


class Term(NamedTuple):
    """A loss as a weighted sum, so that ranks and micro-batches can be added before dividing."""

    total: Tensor
    weight: Tensor


@dataclass
class Generated:
    """What a mode returns; latents are scaled, actions and states normalised."""

    frames: Tensor | None = None  # (B, F, C, h, w)
    wrist_frames: Tensor | None = None  # (B, F, C, h, w)
    actions: Tensor | None = None  # (B, A, action_dim)
    proprio: Tensor | None = None  # (B, A, proprio_output_dim)


class UVA(nn.Module):
    """Unified Video Action model.

    Args:
        spec: sizes of inputs and outputs. config: the network.
    """

    def __init__(self, spec: ModelSpec, config: ModelConfig) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        dim, horizon = config.transformer.dim, spec.horizon
        self.mar = MAR(spec, config.transformer)
        cond = dim + spec.token_dim if config.video_head.newest_token else dim
        self.video_head = VideoHead(spec.token_dim, cond, config.video_head)
        if spec.wrist_output:
            self.wrist_head = VideoHead(spec.token_dim, cond, config.video_head)

        def chunk_head(row_dim: int) -> ActionHead:
            return ActionHead(row_dim, horizon.actions, dim, horizon.future, spec.grid, config.action_head)

        self.action_head = chunk_head(spec.action_dim)
        if spec.proprio_output_dim:
            self.proprio_head = chunk_head(spec.proprio_output_dim)
        if spec.auxiliary_dim:
            outputs = (horizon.history + horizon.future) * spec.auxiliary_dim
            squeezed = max(1, dim // 16)  # values kept of a token
            self.auxiliary_head = nn.Sequential(
                nn.Linear(dim, squeezed),
                nn.Flatten(1),
                nn.Linear(spec.tokens * squeezed, dim),
                nn.SiLU(),
                nn.Linear(dim, outputs),
            )

    # -- training ------------------------------------------------------------------------------------------------------

    def loss_terms(self, inputs: ModelInputs, targets: Targets, draws: TrainingDraws) -> dict[str, Term]:
        """Losses of a batch that may mix task modes (paper, section III-D).

        Args:
            inputs: with future frames and actions, whatever the modes; the draws say what is hidden.

        Returns:
            terms video, action and, where the spec has them, wrist, proprio and auxiliary. Padded frames and actions
            have no weight, and padded frames are hidden from the input as well.
        """
        padded = ~targets.frame_valid.repeat_interleave(self.spec.tokens_per_frame, dim=1)  # (B, T*S)
        seen = Visibility(draws.masked | padded, draws.sees_history, draws.sees_actions, draws.sees_text)
        z = self.mar(inputs, seen)  # (B, T*S, d)
        weights = self.loss_weights(targets, draws)
        terms = {}

        if len(draws.video_samples):
            at = draws.video_samples.unsqueeze(1), draws.video_rows  # (V, R) of the batch's tokens
            views = {"video": (self.video_head, inputs.history, inputs.future, draws.video_t, draws.video_noise)}
            if self.spec.wrist_output:
                wrist = inputs.wrist_history, inputs.wrist_future, draws.wrist_t, draws.wrist_noise
                views["wrist"] = (self.wrist_head, *wrist)
            for name, (head, history, future, t, noise) in views.items():
                x0 = patchify(future, self.spec.patch_size)[at].unsqueeze(1).expand_as(noise)  # (V, K, R, C)
                squared_error, bound = head.loss(self.video_condition(z, history)[at].unsqueeze(1), x0, t, noise)
                terms[name] = _term((squared_error + bound).mean(-1), weights[name])
        if len(draws.action_samples):
            chosen = draws.action_samples
            valid = targets.action_valid[chosen]
            losses = self.action_head.chunk_loss(
                z[chosen], inputs.actions[chosen], valid, draws.action_t, draws.action_noise
            )
            terms["action"] = _term(sum(losses), weights["action"])
        if self.spec.proprio_output_dim:
            losses = self.proprio_head.chunk_loss(
                z, targets.proprio, targets.action_valid, draws.proprio_t, draws.proprio_noise
            )
            terms["proprio"] = _term(sum(losses), weights["proprio"])
        if self.spec.auxiliary_dim:
            predicted = self.auxiliary_head(z).reshape(targets.auxiliary.shape)
            terms["auxiliary"] = _term((predicted - targets.auxiliary).float().square().mean(-1), weights["auxiliary"])
        return terms

    def loss_weights(self, targets: Targets, draws: TrainingDraws) -> dict[str, Tensor]:
        """Weight of every row of each loss term, known before the forward pass.

        video, wrist (V, K, R); action, proprio (B, K, A); auxiliary (B, H+F).
        """
        weights = {}
        if len(draws.video_samples):
            padded = ~targets.frame_valid.repeat_interleave(self.spec.tokens_per_frame, dim=1)
            at = draws.video_samples.unsqueeze(1), draws.video_rows
            counted = (draws.masked & ~padded)[at]  # (V, R)
            weights["video"] = counted.unsqueeze(1).expand(draws.video_t.shape).float()
            if self.spec.wrist_output:
                weights["wrist"] = weights["video"]
        if len(draws.action_samples):
            valid = targets.action_valid[draws.action_samples].float()
            weights["action"] = valid.unsqueeze(1).expand(-1, draws.action_t.shape[1], -1)
        if self.spec.proprio_output_dim:
            valid = targets.action_valid.float()
            weights["proprio"] = valid.unsqueeze(1).expand(-1, draws.proprio_t.shape[1], -1)
        if self.spec.auxiliary_dim:
            history = targets.frame_valid.new_ones(len(targets.frame_valid), self.spec.horizon.history)
            weights["auxiliary"] = torch.cat([history, targets.frame_valid], dim=1).float()
        return weights

    def video_condition(self, z: Tensor, history: Tensor) -> Tensor:
        """Joint latent (B, T*S, d) and a camera's history (B, H, C, h, w) -> (B, T*S, c), what its tokens are decoded
        with: the joint latent and, if so configured, the token of the newest frame at the same place."""
        if not self.config.video_head.newest_token:
            return z
        newest = patchify(history[:, -1:], self.spec.patch_size)  # (B, S, C)
        return torch.cat([z, newest.to(z.dtype).repeat(1, self.spec.horizon.future, 1)], dim=-1)

    # -- inference -----------------------------------------------------------------------------------------------------

    def joint_latent(self, inputs: ModelInputs, seen: Visibility, guided: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, T*S, d), and the same without the instruction when guided."""
        if not guided:
            return self.mar(inputs, seen), None
        both, hidden = inputs.repeat(2), seen.repeat(2)
        hidden.text[inputs.batch :] = False
        return self.mar(both, hidden).chunk(2)

    @torch.no_grad()
    def sample(
        self,
        inputs: ModelInputs,
        mode: TaskMode,
        *,
        sampler: Sampler,
        video_sampler: Sampler | None = None,
        iterations: int = 1,
        guidance: float = 1.0,
        generator: Generators = None,
        order: Tensor | None = None,
        hide_history: bool | None = None,
        resample_actions: bool = False,
        keep: tuple[Tensor, Tensor] | None = None,
    ) -> Generated:
        """Do one of the five jobs.

        Args:
            inputs: what the mode needs: history; and actions for forward dynamics, future frames for inverse dynamics.
            sampler, video_sampler: for actions, for frames (the same when None).
            iterations: steps of autoregressive generation; each predicts part of every frame's cells.
            guidance: classifier-free guidance on the instruction; 1 is off.
            generator: noise; one per sample makes a sample's result independent of its batch.
            order: (B, S) the order in which cells are generated; random when None.
            hide_history: overrides the mode (inverse dynamics of the paper's code hides the first camera's).
            resample_actions: draw actions in every iteration, as the paper's code does, and keep the last.
            keep: normalised actions (B, A, action_dim) that the chunk is to keep to, and by how much (B, A): from 0,
                free, to 1, as they are.

        Raises:
            ValueError: an input that the mode needs is missing, or guidance without language.
        """
        spec, batch = self.spec, inputs.batch
        guided = guidance != 1.0
        if guided and not spec.text_dim:
            raise ValueError(f"guidance {guidance} needs a model with language; this one has text_dim 0")
        if mode.sees_actions and inputs.actions is None:
            raise ValueError(f"mode {mode.name} needs actions")
        if mode.future == "seen" and inputs.future is None:
            raise ValueError(f"mode {mode.name} needs future frames")
        sees_history = mode.sees_history if hide_history is None else not hide_history
        like = inputs.history

        def every(value: bool) -> Tensor:
            return torch.full((batch,), value, dtype=torch.bool, device=like.device)

        masked = torch.full((batch, spec.tokens), mode.future != "seen", dtype=torch.bool, device=like.device)
        seen = Visibility(masked, every(sees_history), every(mode.sees_actions), every(True))
        inputs = ModelInputs(**{**vars(inputs), "future": inputs.future if mode.future == "seen" else None})
        result = Generated()

        def decode_chunks(z: Tensor, free: Tensor | None) -> None:
            if mode.learns_actions:
                known = None if keep is None else self.action_head.known_rows(*keep)
                result.actions = self.action_head.sample_chunk(z, sampler, generator, free, guidance, known)
            if spec.proprio_output_dim:
                result.proprio = self.proprio_head.sample_chunk(z, sampler, generator, free, guidance)

        if not mode.learns_frames:
            decode_chunks(*self.joint_latent(inputs, seen, guided))
            return result

        order = self._order(batch, generator).to(like.device) if order is None else order
        shape = batch, spec.horizon.future, spec.latent.channels, spec.latent.height, spec.latent.width
        inputs.future = like.new_zeros(shape)
        inputs.wrist_future = like.new_zeros(shape) if spec.wrist_output else None
        schedule = generation_schedule(spec.tokens_per_frame, iterations)
        for left in schedule:
            z, free = self.joint_latent(inputs, seen, guided)
            if resample_actions or left == 0:
                decode_chunks(z, free)
            still_masked = torch.zeros(batch, spec.tokens_per_frame, dtype=torch.bool, device=like.device)
            still_masked.scatter_(1, order[:, :left], True)
            still_masked = still_masked.repeat(1, spec.horizon.future)  # (B, T*S)
            predicted = seen.masked & ~still_masked
            heads = [("future", self.video_head, inputs.history)]
            if spec.wrist_output:
                heads.append(("wrist_future", self.wrist_head, inputs.wrist_history))
            for name, head, history in heads:
                rows, free_rows = (  # (n, c), sample-major
                    None if each is None else self.video_condition(each, history)[predicted] for each in (z, free)
                )
                drawn = head.sample(rows, video_sampler or sampler, generator, free_rows, guidance)  # (n, C)
                tokens = patchify(getattr(inputs, name), spec.patch_size)
                tokens[predicted] = drawn
                setattr(inputs, name, unpatchify(tokens, spec))
            seen.masked = still_masked
        result.frames, result.wrist_frames = inputs.future, inputs.wrist_future
        return result

    @torch.no_grad()
    def states(self, inputs: ModelInputs, mode: TaskMode) -> Tensor:
        """Auxiliary targets (B, H+F, auxiliary_dim) as the joint latent has them before any frame is generated."""

        def every(value: bool, *shape: int) -> Tensor:
            return torch.full((inputs.batch, *shape), value, device=inputs.history.device)

        seen = Visibility(
            every(True, self.spec.tokens), every(mode.sees_history), every(mode.sees_actions), every(True)
        )
        z = self.mar(inputs, seen)  # (B, T*S, d)
        return self.auxiliary_head(z).reshape(inputs.batch, -1, self.spec.auxiliary_dim)

    def _order(self, batch: int, generator: Generators) -> Tensor:
        cells = self.spec.tokens_per_frame
        if isinstance(generator, list | tuple):
            return torch.stack([spatial_order(cells, each) for each in generator])
        return torch.stack([spatial_order(cells, generator) for _ in range(batch)])


def _term(rows: Tensor, weight: Tensor) -> Term:
    return Term((rows * weight).sum(), weight.sum())
