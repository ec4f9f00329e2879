"""The denoising loop of a head, with everything that does not depend on the noisy rows worked out beforehand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unified_video_action.model.heads import DiffusionHead
from unified_video_action.model.samplers import Known, Sampler, Step

MODULATION_BYTES = 2**25  # of the steps whose modulation is computed at a time


class Denoiser:
    """Samples what `DiffusionHead.sample` samples, from noise that is given.

    Embeddings of the time steps are computed once, here. What shifts, scales and gates the network's layers depends on
    the condition and the step, not on the noisy rows: one product gives it for all layers and as many steps as fit
    into memory, with the affine part of the norms folded in. The loop itself has no table look-up, no upload and no
    synchronisation, so it can be captured as a graph. Weights are those at construction.

    Args:
        head: with its network. sampler: its steps.
        guidance: classifier-free guidance; other than 1, conditions come in two halves, with and without instruction.
        dtype: of matrix products and of what they multiply; rows stay in float32.
    """

    @torch.no_grad()
    def __init__(self, head: DiffusionHead, sampler: Sampler, guidance: float, dtype: torch.dtype) -> None:
        net = head.net
        self.channels, self.guidance, self.dtype = head.channels, guidance, dtype
        self.guided = guidance != 1.0
        self.learned_variance = head.config.learned_variance
        self.clamp = head.clamp_for(sampler)
        self.chain = head.diffusion.chain(sampler)
        self.width = net.cond_embed.out_features
        self.eps = net.final.norm.eps
        device = net.cond_embed.weight.device
        with torch.autocast(device.type, enabled=False):
            steps = torch.tensor([step.t for step in self.chain], device=device)
            self.time = net.time_embed(steps).float().unsqueeze(1)  # (steps, 1, w)
        self.cond_embed = self._linear(net.cond_embed)
        self.input_proj = self._linear(net.input_proj)
        self.layers = [(self._linear(block.mlp[0]), self._linear(block.mlp[2])) for block in net.blocks]
        self.output = self._linear(net.final.linear)
        folded = [_fold_affine(block.modulation[-1], block.norm) for block in net.blocks]
        folded.append(_fold_affine(net.final.modulation[-1], net.final.norm))
        weight, bias = (torch.cat(parts).to(dtype) for parts in zip(*folded, strict=True))
        self.modulation = weight, bias  # (layers * 3w + 2w, w)

    def _linear(self, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        return layer.weight.to(self.dtype), layer.bias.to(self.dtype)

    def __call__(self, cond: Tensor, noise: Tensor, known: Known | None = None) -> Tensor:
        """Denoise.

        Args:
            cond: (rows, c), or (2 * rows, c) when guided.
            noise: (draws, rows, C) float32, as many draws as the sampler asks for.
            known: what the rows are to keep to.

        Returns:
            (rows, C) float32.
        """
        with torch.autocast(cond.device.type, enabled=False):
            return self._denoise(cond, noise, known)

    def _denoise(self, cond: Tensor, noise: Tensor, known: Known | None) -> Tensor:
        cond = F.linear(cond.to(self.dtype), *self.cond_embed).float()  # (R, w)
        x, last = noise[0], torch.zeros_like(noise[0])
        row_bytes = len(cond) * self.modulation[0].shape[0] * self.dtype.itemsize
        together = max(1, MODULATION_BYTES // row_bytes)
        for first in range(0, len(self.chain), together):
            y = F.silu(self.time[first : first + together] + cond).to(self.dtype)  # (k, R, w)
            modulations = F.linear(y, *self.modulation)  # (k, R, layers * 3w + 2w)
            for i, modulation in enumerate(modulations.unbind(), first):
                step = self.chain[i]
                output, spread = self._network(x, modulation)
                x0 = self._x0(step, x, output)
                if known is not None:
                    x0 = known.blend(x0)
                x = step.from_x * x + step.from_x0 * x0
                if step.from_last:
                    x = torch.add(x, last, alpha=step.from_last)
                if step.adds_noise:
                    x = torch.addcmul(x, self._std(step, spread, noise), noise[i + 1])
                last = x0
        return x

    def _network(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """The network's mean output and its spread (if any), (rows, C) float32 each."""
        parts = modulation.split(self.width, dim=-1)
        x = x.to(self.dtype)
        h = F.linear(torch.cat([x, x]) if self.guided else x, *self.input_proj)  # (R, w)
        for i, (first, second) in enumerate(self.layers):
            shift, scale, gate = parts[3 * i : 3 * i + 3]
            y = torch.addcmul(shift, F.layer_norm(h, (self.width,), eps=self.eps), scale)
            y = F.linear(F.silu(F.linear(y, *first)), *second)
            h = torch.addcmul(h, gate, y)
        shift, scale = parts[-2:]
        output = F.linear(torch.addcmul(shift, F.layer_norm(h, (self.width,), eps=self.eps), scale), *self.output)
        output = output.float()  # (R, C) or (R, 2C)
        if self.guided:
            output, free = output.chunk(2)
            mean, free = output[:, : self.channels], free[:, : self.channels]
            return free + self.guidance * (mean - free), output[:, self.channels :]
        return output[:, : self.channels], output[:, self.channels :]

    def _x0(self, step: Step, x: Tensor, output: Tensor) -> Tensor:
        x0 = step.x0_from_x * x + step.x0_from_output * output
        return x0 if self.clamp is None else x0.clamp(-self.clamp, self.clamp)

    def _std(self, step: Step, spread: Tensor, noise: Tensor) -> Tensor:
        if self.learned_variance:
            return torch.exp(step.log_std + step.log_std_slope * spread)
        return torch.exp(torch.full_like(noise[0], step.log_std))


def _fold_affine(modulation: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of (shift', scale', ...) for which n * scale' + shift' = (n * g + b) * (1 + scale) + shift,
    with g and b the affine part of the norm (or none, 1 and 0)."""
    weight, bias = modulation.weight.clone(), modulation.bias.clone()
    width = norm.normalized_shape[0]
    shift, scale = slice(0, width), slice(width, 2 * width)
    bias[scale] += 1
    if norm.elementwise_affine:
        weight[shift] += norm.bias.unsqueeze(1) * weight[scale]
        bias[shift] += norm.bias * bias[scale]
        weight[scale] *= norm.weight.unsqueeze(1)
        bias[scale] *= norm.weight
    return weight, bias
