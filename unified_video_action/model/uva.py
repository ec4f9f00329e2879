"""UVA: the joint latent of MAR, decoded by diffusion heads; one loss and one sampler for all task modes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unified_video_action.model.acceleration import Replays, Weights, in_precision, shallow_copy
from unified_video_action.model.config import ModelConfig
from unified_video_action.model.diffusion import draw_noise
from unified_video_action.model.heads import ActionHead, VideoHead
from unified_video_action.model.inputs import ModelInputs, Visibility, doubled, patchify, unpatchify
from unified_video_action.model.losses import LossTerm, Targets, loss_weights
from unified_video_action.model.mar import MAR
from unified_video_action.model.masking import TrainingCorruption, generation_schedule
from unified_video_action.model.samplers import Sampler
from unified_video_action.model.task_modes import TaskMode
from unified_video_action.noise import Generators
from unified_video_action.spec import ModelSpec


class Generated(NamedTuple):
    """What a mode returns: scaled latents and normalised actions."""

    frames: Tensor | None  # (B, P, F, C, h, w)
    actions: Tensor | None  # (B, A, action_dim)


class UVA(nn.Module):
    """Unified Video Action model."""

    def __init__(self, spec: ModelSpec, config: ModelConfig) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        dim, horizon = config.transformer.dim, spec.horizon
        self.mar = MAR(spec, config.transformer, config.masking.noise)
        cond = dim + spec.token_dim if config.video_head.newest_token else dim
        heads = (VideoHead(spec.token_dim, cond, config.video_head, spec.tokens) for _ in range(spec.predicted_views))
        self.video_heads = nn.ModuleList(heads)

        chunk = horizon.actions, dim, horizon.future, spec.grid, config.action_head
        self.action_head = ActionHead(spec.action_dim, *chunk)
        if spec.proprio_output_dim:
            self.proprio_head = ActionHead(spec.proprio_output_dim, *chunk)
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

    def loss_terms(self, inputs: ModelInputs, targets: Targets, corruption: TrainingCorruption) -> dict[str, LossTerm]:
        """Losses of a batch that may mix task modes (paper, section III-D).

        Args:
            inputs: with future frames and actions, whatever the modes; the corruption says what is hidden.

        Returns:
            terms video (summed over the predicted views), action and, where the spec has them, proprio and auxiliary.
            Padded frames and actions have no weight, and padded frames are hidden from the input as well.
        """
        padded = ~targets.frame_valid.repeat_interleave(self.spec.tokens_per_frame, dim=1)  # (B, T*S)
        seen = Visibility(
            corruption.masked | padded, corruption.sees_history, corruption.sees_actions, corruption.sees_text
        )
        seen.history_actions = corruption.sees_history_actions
        if corruption.levels is not None:
            seen.levels = corruption.levels.unsqueeze(1).repeat(1, self.spec.tokens, 1)  # (B, T*S, 2)
            seen.levels[..., 0].masked_fill_(padded, 1.0)
            seen.frames_noise, seen.actions_noise = corruption.frames_noise, corruption.actions_noise
        z = self.mar(inputs, seen)  # (B, T*S, d)
        weights = loss_weights(self.spec, targets, corruption)
        terms = {}

        if len(corruption.video_samples):
            at = corruption.video_samples.unsqueeze(1), corruption.video_rows  # (V, R) of the batch's tokens
            totals = []
            for view, head in enumerate(self.video_heads):
                t, noise = corruption.video_t[:, view], corruption.video_noise[:, view]  # (V, K, R), (V, K, R, C)
                x0 = patchify(inputs.future[:, view], self.spec.patch_size)[at].unsqueeze(1).expand_as(noise)
                cond = self.video_condition(z, inputs.history[:, view])[at].unsqueeze(1)  # (V, 1, R, c)
                squared_error, bound = head.loss(cond, x0, t, noise)
                totals.append(LossTerm.of((squared_error + bound).mean(-1), weights["video"]))
            terms["video"] = LossTerm(sum(term.total for term in totals), totals[0].weight)
        if len(corruption.action_samples):
            rows = (each[corruption.action_samples] for each in (z, inputs.actions, targets.action_valid))
            losses = self.action_head.chunk_loss(*rows, corruption.action_t, corruption.action_noise)
            terms["action"] = LossTerm.of(sum(losses), weights["action"])
        if self.spec.proprio_output_dim:
            rows = z, targets.proprio, targets.action_valid
            losses = self.proprio_head.chunk_loss(*rows, corruption.proprio_t, corruption.proprio_noise)
            terms["proprio"] = LossTerm.of(sum(losses), weights["proprio"])
        if self.spec.auxiliary_dim:
            predicted = self.auxiliary_head(z).reshape(targets.auxiliary.shape)
            terms["auxiliary"] = LossTerm.of(
                (predicted - targets.auxiliary).float().square().mean(-1), weights["auxiliary"]
            )
        return terms

    def video_condition(self, z: Tensor, history: Tensor) -> Tensor:
        """Joint latent (B, T*S, d) and a view's history (B, H, C, h, w) -> (B, T*S, c), what its tokens are decoded
        with: the joint latent and, if so configured, the newest frame's token at the same cell."""
        if not self.config.video_head.newest_token:
            return z
        newest = patchify(history[:, -1:], self.spec.patch_size)  # (B, S, C)
        return torch.cat([z, newest.to(z.dtype).repeat(1, self.spec.horizon.future, 1)], dim=-1)

    # -- inference -----------------------------------------------------------------------------------------------------

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
        chunks: int = 1,
    ) -> Generated:
        """Do one of the five jobs.

        Args:
            inputs: what the mode needs: history; and actions for forward dynamics, future frames for inverse dynamics.
            sampler, video_sampler: for actions, for frames (the same when None).
            iterations: steps of autoregressive generation; each predicts part of every frame's cells.
            guidance: classifier-free guidance on the instruction; 1 is off.
            generator: noise; one per sample makes a sample's result independent of its batch.
            order: (B, S) the order in which cells are generated; random when None.
            hide_history: overrides the mode (inverse dynamics of the paper's code hides the first view's).
            resample_actions: draw actions in every iteration, as the paper's code does, and keep the last.
            keep: normalised actions (B, A, action_dim) that the chunk is to keep to, and by how much (B, A): from 0,
                free, to 1, as they are.
            chunks: draw so many chunks of actions from each sample's joint latent: (B * chunks, A, action_dim).

        Raises:
            ValueError: an input that the mode needs is missing, or guidance without language.
            RuntimeError: the weights of an `accelerated` model have changed.
        """
        if self.made_of is not None:
            self.made_of.require_unchanged()
        spec, batch, device = self.spec, inputs.batch, inputs.history.device
        guided = guidance != 1.0
        if guided and not spec.text_dim:
            raise ValueError(f"guidance {guidance} needs a model with language; this one has text_dim 0")
        if mode.sees_actions and inputs.actions is None:
            raise ValueError(f"mode {mode.name} needs actions")
        if mode.future == "seen" and inputs.future is None:
            raise ValueError(f"mode {mode.name} needs future frames")
        seen = self.shown(inputs, mode, hide_history)
        inputs = replace(inputs, future=inputs.future if mode.future == "seen" else None)
        repeated = [own for own in generator for _ in range(chunks)] if isinstance(generator, Sequence) else generator
        kept = () if keep is None else tuple(each.repeat_interleave(chunks, 0) for each in keep)

        def noise_for(head: ActionHead) -> Tensor:
            shape = batch * chunks * head.rows, head.channels
            return draw_noise(shape, sampler.noise_draws, repeated, device)

        def decode_actions(z: Tensor) -> Tensor | None:
            actions, head = None, self.action_head
            if mode.learns_actions:

                def chunk(z: Tensor, noise: Tensor, *keep: Tensor) -> Tensor:
                    return head.sample_chunk(z, noise, sampler, guidance, keep or None)

                actions = self.run(("actions", sampler, guidance), chunk, z, noise_for(head), *kept)
            if spec.proprio_output_dim:  # states are not sampled, but seeds mean what they meant when they were
                noise_for(self.proprio_head)
            return actions

        if not mode.learns_frames:
            return Generated(None, decode_actions(self.joint_latent(inputs, seen, guided)))

        if order is None:
            generators = generator if isinstance(generator, Sequence) else [generator] * batch
            order = torch.stack([_random_order(spec.tokens_per_frame, each) for each in generators]).to(
                device
            )  # (B, S)
        latent = spec.latent.channels, spec.latent.height, spec.latent.width
        inputs.future = inputs.history.new_zeros(batch, spec.predicted_views, spec.horizon.future, *latent)
        frames = torch.arange(spec.horizon.future, device=device)[:, None] * spec.tokens_per_frame  # (F, 1)
        by, actions, right = video_sampler or sampler, None, spec.tokens_per_frame
        together = self.config.video_head.attention_heads > 0  # all tokens are denoised, those drawn before are kept
        for left in generation_schedule(spec.tokens_per_frame, iterations):
            z = self.joint_latent(inputs, seen, guided)
            if resample_actions or left == 0:
                actions = decode_actions(z)
            cells = order[:, left:right].sort(dim=1).values  # (B, n) those predicted now, in every frame
            now = (frames + cells.unsqueeze(1)).flatten(1)  # (B, F*n)
            tokens = torch.arange(spec.tokens, device=device).expand(batch, -1) if together else now
            both = tokens.repeat(2, 1) if guided else tokens
            made = []
            for view, head in enumerate(self.video_heads):
                history = inputs.history[:, view]
                cond = self.video_condition(z, history.repeat(2, 1, 1, 1, 1) if guided else history)  # (B, T*S, c)
                cond = cond.gather(1, both.unsqueeze(-1).expand(-1, -1, cond.shape[-1])).flatten(0, 1)  # (B*F*n, c)
                noise = draw_noise((tokens.numel(), head.channels), by.noise_draws, generator, device)
                known, given = patchify(inputs.future[:, view], spec.patch_size), ()  # (B, T*S, C)
                if together and iterations > 1:
                    given = known.flatten(0, 1), (~seen.masked).unsqueeze(-1).expand_as(known).flatten(0, 1).to(known)

                def rows(cond: Tensor, noise: Tensor, *given: Tensor, head: VideoHead = head) -> Tensor:
                    return head.sample(cond, noise, by, guidance, given or None)

                drawn = self.run((f"frames {view}", by, guidance), rows, cond, noise, *given).unflatten(0, tokens.shape)
                index = now.unsqueeze(-1).expand(-1, -1, head.channels)  # (B, F*n, C)
                drawn = drawn.gather(1, index) if together else drawn
                made.append(unpatchify(known.scatter(1, index, drawn.to(known)), spec))
            inputs.future = torch.stack(made, dim=1)  # (B, P, F, C, h, w)
            seen.masked = seen.masked.scatter(1, now, False)
            right = left
        return Generated(inputs.future, actions)

    @torch.no_grad()
    def states(self, inputs: ModelInputs, mode: TaskMode) -> Tensor:
        """Auxiliary targets (B, H+F, auxiliary_dim) as the joint latent has them before any frame is generated."""
        z = self.joint_latent(inputs, self.shown(inputs, mode))  # (B, T*S, d)
        return self.auxiliary_head(z).reshape(inputs.batch, -1, self.spec.auxiliary_dim)

    def shown(self, inputs: ModelInputs, mode: TaskMode, hide_history: bool | None = None) -> Visibility:
        """What a mode sees before any frame is generated."""

        def every(value: bool, *shape: int) -> Tensor:
            return torch.full((inputs.batch, *shape), value, dtype=torch.bool, device=inputs.history.device)

        history = mode.sees_history if hide_history is None else not hide_history
        masked = every(mode.future != "seen", self.spec.tokens)
        return Visibility(masked, every(history), every(mode.sees_actions), every(True))

    def joint_latent(self, inputs: ModelInputs, seen: Visibility, guided: bool = False) -> Tensor:
        """(B, T*S, d), or when guided (2B, T*S, d), the second half without the instruction."""
        if guided:
            inputs, seen = doubled(inputs), doubled(seen)
            seen.text[len(seen.text) // 2 :] = False
        given, shown = list(vars(inputs).values()), list(vars(seen).values())

        def mar(*tensors: Tensor | None) -> Tensor:
            return self.mar(ModelInputs(*tensors[: len(given)]), Visibility(*tensors[len(given) :]))

        return self.run("joint latent", mar, *given, *shown)

    # An accelerated model replaces these; they hold no weights of a plain one.
    replay: Callable[..., Tensor] | None = None
    made_of: Weights | None = None

    def run(self, name: Hashable, function: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        """A function of tensors, or the graph of it that an accelerated model has captured."""
        if self.replay is None:
            device = self.mar.input_norm.weight.device
            return function(*(each if each is None else each.to(device) for each in tensors))
        return self.replay(name, function, *tensors)

    def accelerated(self, dtype: torch.dtype | None = None) -> UVA:
        """A model that samples the same, sooner: it shares this one's weights and refuses to go on once they change.

        What follows from the weights alone is worked out once. On a CUDA device each part is captured as a graph for
        each batch size that it meets.

        Args:
            dtype: low precision of products and of what lies between them; noisy rows, sums of conditions, and what
                one part passes to another stay in float32. None: as this model computes.
        """
        fast = shallow_copy(self)
        fast.made_of = Weights(self, self.mar.decoder.norm.bias)
        fast.replay = Replays(self.mar.input_norm.weight.device, dtype)
        fast.mar = in_precision(self.mar, dtype)
        fast.video_heads = nn.ModuleList(map(shallow_copy, self.video_heads))
        fast.action_head = shallow_copy(self.action_head)
        fast.action_head.trunk = in_precision(self.action_head.trunk, dtype)
        for head in (*fast.video_heads, fast.action_head):
            head.denoisers, head.low_precision = {}, dtype
        return fast


def _random_order(cells: int, generator: torch.Generator | None) -> Tensor:
    return torch.randperm(cells, generator=generator, device=None if generator is None else generator.device)
