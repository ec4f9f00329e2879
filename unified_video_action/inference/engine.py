"""The fast path of a policy: what it computes is what the policy computes, with less work and less waiting."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from unified_video_action.inference.denoiser import Denoiser
from unified_video_action.inference.folded_inputs import FoldedInputs
from unified_video_action.inference.graphs import Replayed
from unified_video_action.model.heads import DiffusionHead
from unified_video_action.model.inputs import ModelInputs, unpatchify
from unified_video_action.model.masking import spatial_order
from unified_video_action.model.samplers import Sampler
from unified_video_action.model.uva import Generated
from unified_video_action.policy.unified_video_action_policy import UnifiedVideoActionPolicy
from unified_video_action.vae.base import Moments

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Runs a policy's parts; `sample` is `UVA.sample` for the modes `policy` and, in one iteration, `policy_and_video`.

    Results equal the policy's, up to rounding: the same generators draw the same noise in the same order. On a CUDA
    device each part is a graph for each batch size it has met; on a CPU the parts run as they are.

    Args:
        policy: on its device, in evaluation mode.
        sampler: overrides the policy's samplers, such as "ddim10".
        precision: of products and of what lies between them: "no" is float32, "bf16" and "fp16" are themselves. Noisy
            rows, their conditions' sums and what a part hands on stay in float32.

    Raises:
        ValueError: an unknown precision.
    """

    def __init__(self, policy: UnifiedVideoActionPolicy, sampler: str | None = None, precision: str = "no") -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
        self.policy, self.model, self.spec = policy, policy.model, policy.model.spec
        self.dtype, self.device = PRECISIONS[precision], policy.device
        self.guidance = policy.config.guidance
        self.samplers = policy.config.samplers(sampler)
        if self.guided and not self.spec.text_dim:
            raise ValueError(f"guidance {self.guidance} needs a model with language; this one has text_dim 0")
        self._weights = list(self.model.parameters())
        self._state = self._weight_state()
        self._probe = self._probed().clone()
        self.inputs = FoldedInputs(self.model.mar.inputs)
        self.mar = self._in_precision(self.model.mar)
        self.action_trunk = self._in_precision(self.model.action_head.trunk)
        self.codec = policy.codec
        self._encode = self._part("VAE encode", self._run_encode)
        self._latent = self._part("transformer", self._run_transformer)
        self._actions = self._part("action diffusion", self._run_actions)
        self._frames = self._part("video diffusion", self._run_frames)
        self._decode = self._part("VAE decode", policy.decode)

    @property
    def guided(self) -> bool:
        return self.guidance != 1.0

    # -- the parts -----------------------------------------------------------------------------------------------------

    def encode(self, frames: Tensor) -> Moments:
        """uint8 frames (B, T, 3, H, W) -> moments (B, T, C, h, w)."""
        return Moments(*self._encode(frames))

    def joint_latent(self, inputs: ModelInputs) -> Tensor:
        """History, states and instruction -> (B, T*S, d); when guided (2B, T*S, d), the second half without
        instruction. `inputs.text` is what `instruction` made of each: (B, text_tokens, d)."""
        return self._latent(
            inputs.history, inputs.wrist_history, inputs.history_actions, inputs.proprio, inputs.text
        )  # fmt: skip

    def denoise_actions(self, z: Tensor, noise: Tensor, keep: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Joint latent, noise (draws, n * rows, C) -> normalised actions (n, A, action_dim), n a multiple of B, every
        n / B of one joint latent; `keep` (n, ...) as in `sample`."""
        return self._actions(z, noise, *(keep or (None, None)))

    def denoise_frames(self, z: Tensor, history: Tensor, noise: Tensor) -> Tensor:
        """Joint latent, history (B, H, C, h, w), noise (draws, B*T*S, C) -> what the model predicts (B, F, C, h, w)."""
        return self._frames(z, history, noise)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, T, C, h, w) -> uint8 frames (B, T, 3, H, W)."""
        return self._decode(latents)

    # -- together ------------------------------------------------------------------------------------------------------

    def instruction(self, text: Tensor) -> Tensor:
        """An instruction's feature (text_dim,) -> its tokens (text_tokens, d)."""
        return self.inputs.instruction(text)

    def sample(
        self,
        inputs: ModelInputs,
        generators: Sequence[torch.Generator],
        frames: bool = False,
        keep: tuple[Tensor, Tensor] | None = None,
        chunks: int = 1,
    ) -> Generated:
        """Actions, and frames of the same future if asked for; one generator per sample, on the CPU.

        Args:
            keep: normalised actions (B, A, action_dim) that chunks are to keep to, and by how much (B, A), 0 to 1.
            chunks: draw so many chunks of actions for each sample, (B * chunks, A, action_dim); frames need 1.

        Raises:
            RuntimeError: the policy's weights changed since the engine was made.
        """
        if self.is_stale():
            raise RuntimeError("the policy's weights changed since this session was made: make a new PolicySession")
        if frames:
            for generator in generators:  # the order of generation, which one iteration has no use for
                spatial_order(self.spec.tokens_per_frame, generator)
        z = self.joint_latent(inputs)
        for_actions, for_frames = self.samplers
        head = self.model.action_head
        every = [generator for generator in generators for _ in range(chunks)]  # in the order of the chunks
        keep = keep and tuple(each.repeat_interleave(chunks, 0) for each in keep)
        noise = self.draw_noise(head, for_actions, head.rows, every)
        made = Generated(actions=self.denoise_actions(z, noise, keep))
        if self.spec.proprio_output_dim:  # states are of no use while acting, but the model draws noise for them
            head = self.model.proprio_head
            self.draw_noise(head, for_actions, head.rows, every)
        if frames:
            noise = self.draw_noise(self.model.video_head, for_frames, self.spec.tokens, generators)
            made.frames = self.denoise_frames(z, inputs.history, noise)
            if self.spec.wrist_output:  # likewise
                self.draw_noise(self.model.wrist_head, for_frames, self.spec.tokens, generators)
        return made

    def warm_up(self, batch: int, chunks: int = 1) -> None:
        """Plan once for nothing, so that a CUDA device has its graphs for this many samples, and chunks of each."""
        spec = self.spec
        latents = torch.zeros(batch, spec.horizon.history, spec.latent.channels, spec.latent.height, spec.latent.width)
        inputs = ModelInputs(latents.to(self.device))
        if spec.wrist_input:
            inputs.wrist_history = inputs.history
        if spec.proprio_dim:
            inputs.proprio = torch.zeros(batch, spec.proprio_steps, spec.proprio_dim, device=self.device)
        if spec.text_dim:
            inputs.text = self.inputs.no_text.expand(batch, -1, -1)
        self.sample(inputs, [torch.Generator() for _ in range(batch)], chunks=chunks)

    def draw_noise(
        self, head: DiffusionHead, sampler: Sampler, rows: int, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """All noise that a head needs, as `randn` draws it: (draws, B * rows, C) in host memory."""
        shape = sampler.noise_draws, len(generators) * rows, head.channels
        noise = torch.empty(shape, pin_memory=self.device.type == "cuda")
        for draw in noise:
            for own, generator in zip(draw.split(rows), generators, strict=True):
                torch.randn(own.shape, generator=generator, out=own)
        return noise

    # -- what a part does ----------------------------------------------------------------------------------------------

    def _run_encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.codec.moments(frames)
        return moments.mean.float(), moments.logvar.float()

    def _run_transformer(self, *inputs: Tensor | None) -> Tensor:
        *others, instruction = inputs
        if not self.guided:
            return self.mar.joint_latent(self.inputs(*others, instruction)).float()
        others = [each if each is None else torch.cat([each, each]) for each in others]
        free = self.inputs.no_text.expand_as(instruction)
        return self.mar.joint_latent(self.inputs(*others, torch.cat([instruction, free]))).float()

    def _run_actions(self, z: Tensor, noise: Tensor, kept: Tensor | None, weight: Tensor | None) -> Tensor:
        head = self.model.action_head
        known = None if kept is None else head.known_rows(kept, weight)
        cond = head.as_rows(self.action_trunk(z))  # (B, rows, c), twice as many when guided
        chunks = noise.shape[1] * (2 if self.guided else 1) // (len(cond) * head.rows)  # of each sample
        cond = cond.unsqueeze(1).expand(-1, chunks, -1, -1).flatten(0, 2)  # (n*rows, c)
        return self.action_denoiser(cond, noise, known).reshape(-1, head.steps, head.row_dim)

    def _run_frames(self, z: Tensor, history: Tensor, noise: Tensor) -> Tensor:
        histories = torch.cat([history, history]) if self.guided else history
        cond = self.model.video_condition(z, histories).flatten(0, 1)  # (B*T*S, c)
        return unpatchify(self.video_denoiser(cond, noise).unflatten(0, (-1, self.spec.tokens)), self.spec)

    # -- how it does it ------------------------------------------------------------------------------------------------

    def _part(self, name: str, function: Callable) -> Replayed:
        """A part with gradients off and the engine's own precision, whatever autocast its caller is in."""

        @torch.no_grad()
        def run(*inputs: Tensor | None) -> Tensor | tuple[Tensor, ...]:
            # A cache of cast weights would live in the memory of the graph that is being captured.
            low = self.dtype != torch.float32
            with torch.autocast(self.device.type, self.dtype if low else None, enabled=low, cache_enabled=False):
                return function(*inputs)

        return Replayed(name, run, self.device)

    def _in_precision(self, module: nn.Module) -> nn.Module:
        """The module, or a copy whose products are in low precision."""
        if self.dtype == torch.float32:
            return module
        module = copy.deepcopy(module)
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(self.dtype)
        return module

    @cached_property
    def action_denoiser(self) -> Denoiser:
        return Denoiser(self.model.action_head, self.samplers[0], self.guidance, self.dtype)

    @cached_property
    def video_denoiser(self) -> Denoiser:
        return Denoiser(self.model.video_head, self.samplers[1], self.guidance, self.dtype)

    def is_stale(self) -> bool:
        """Whether the policy's weights changed since the engine was made."""
        return self._state != self._weight_state() or not torch.equal(self._probe, self._probed())

    def _weight_state(self) -> list[tuple[int, int]]:
        """Where every weight is, and how often it was written to."""
        return [(weight.data_ptr(), weight._version) for weight in self._weights]

    def _probed(self) -> Tensor:
        """A few weights that every loss trains: fused optimisers write without counting."""
        return self.model.mar.decoder.norm.bias.detach()
