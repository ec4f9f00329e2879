"""The denoising loop of a head, with everything that does not depend on the noisy rows worked out beforehand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unified_video_action.model.samplers import Known, Sampler, denoise

if TYPE_CHECKING:
    from unified_video_action.model.heads import DiffusionHead

MODULATION_BYTES = 2**25  # of the steps whose modulation is computed at a time


class Denoiser:
    """Samples a head's rows from noise that is given, with the weights as they are at construction.

    What shifts, scales and gates the network's layers depends on the condition and the step, not on the noisy rows: one
    product gives it for all layers and as many steps as fit into memory, with the affine part of the norms folded in.

    Args:
        guidance: other than 1, conditions come in two halves, with and without the instruction.
        dtype: of matrix products and of what they multiply; rows stay in float32.
    """

    @torch.no_grad()
    def __init__(self, head: DiffusionHead, sampler: Sampler, guidance: float, dtype: torch.dtype) -> None:
        net = head.net
        self.channels, self.guidance, self.dtype = head.channels, guidance, dtype
        self.learned_variance = head.config.learned_variance
        self.clamp = head.clamp_for(sampler)
        self.chain = head.diffusion.chain(sampler)
        self.width = net.cond_embed.out_features
        self.eps = net.final.norm.eps
        device = net.cond_embed.weight.device
        with torch.autocast(device.type, enabled=False):
            steps = torch.tensor([step.t for step in self.chain], device=device)
            self.time = net.time_embed(steps).float().unsqueeze(1)  # (steps, 1, w)

        def linear(layer: nn.Linear) -> tuple[Tensor, Tensor]:
            return layer.weight.to(dtype), layer.bias.to(dtype)

        self.cond_embed, self.input_proj = linear(net.cond_embed), linear(net.input_proj)
        self.layers: list[Callable[[Tensor], Tensor]] = []
        for layer in net.layers():
            if hasattr(layer, "mlp"):
                self.layers.append(partial(_mlp, linear(layer.mlp[0]), linear(layer.mlp[2])))
            else:
                own = layer.attention
                self.layers.append(partial(_attend, linear(own.qkv), linear(own.proj), own.num_heads, head.tokens))
        self.output = linear(net.final.linear)
        folded = [_fold_affine(layer.modulation[-1], layer.norm) for layer in net.layers()]
        folded.append(_fold_affine(net.final.modulation[-1], net.final.norm))
        weight, bias = (torch.cat(parts).to(dtype) for parts in zip(*folded, strict=True))
        self.modulation = weight, bias  # (layers * 3w + 2w, w)

    def __call__(self, cond: Tensor, noise: Tensor, known: Known | None = None) -> Tensor:
        """cond (rows, c), or (2 * rows, c) when guided; noise (count, rows, C) -> (rows, C), both float32."""
        with torch.autocast(cond.device.type, enabled=False):
            cond = F.linear(cond.to(self.dtype), *self.cond_embed).float()  # (R, w)
            row_bytes = len(cond) * self.modulation[0].shape[0] * self.dtype.itemsize
            together = max(1, MODULATION_BYTES // row_bytes)
            modulations: Tensor | None = None

            def network(i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
                nonlocal modulations
                if i % together == 0:
                    y = F.silu(self.time[i : i + together] + cond).to(self.dtype)  # (k, R, w)
                    modulations = F.linear(y, *self.modulation)  # (k, R, layers * 3w + 2w)
                return self._network(x, modulations[i % together])

            return denoise(network, noise, self.chain, self.clamp, known)

    def _network(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's mean output and its spread (if any), (rows, C) float32 each."""
        parts = modulation.split(self.width, dim=-1)
        x, guided = x.to(self.dtype), self.guidance != 1.0
        h = F.linear(torch.cat([x, x]) if guided else x, *self.input_proj)  # (R, w)
        for i, layer in enumerate(self.layers):
            shift, scale, gate = parts[3 * i : 3 * i + 3]
            y = layer(torch.addcmul(shift, F.layer_norm(h, (self.width,), eps=self.eps), scale))
            h = torch.addcmul(h, gate, y)
        shift, scale = parts[-2:]
        output = F.linear(torch.addcmul(shift, F.layer_norm(h, (self.width,), eps=self.eps), scale), *self.output)
        output = output.float()  # (R, C) or (R, 2C)
        if guided:
            output, free = output.chunk(2)
            free = free[:, : self.channels]
            mean = free + self.guidance * (output[:, : self.channels] - free)
        else:
            mean = output[:, : self.channels]
        return mean, output[:, self.channels :] if self.learned_variance else None


Affine = tuple[Tensor, Tensor]  # weight and bias of a linear layer


def _mlp(first: Affine, second: Affine, x: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, *first)), *second)


def _attend(qkv: Affine, proj: Affine, heads: int, tokens: int, x: Tensor) -> Tensor:
    """Attention among the rows of each clip: (clips * tokens, w) -> the same."""
    q, k, v = rearrange(F.linear(x, *qkv), "(b t) (three h d) -> three b h t d", t=tokens, three=3, h=heads)
    y = F.scaled_dot_product_attention(q, k, v)
    return F.linear(rearrange(y, "b h t d -> (b t) (h d)"), *proj)


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
