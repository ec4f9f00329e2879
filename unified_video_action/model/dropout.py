"""Dropout whose random numbers cost little on a CPU: 16 bits an element, of a generator that torch's own one seeds."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16
COMPILED, RANDOM = torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded  # what torch.compile is to know


def _draw_kept(like: Tensor, rate: float) -> Tensor:
    """1 where an element is kept, 0 with probability `rate` (to 16 bits): uint8 of `like`'s shape, on the CPU."""
    random = np.random.SFC64(int(torch.randint(2**62, ())))
    bits = random.random_raw(-(-like.numel() // 4)).view(np.uint16)[: like.numel()]  # 64 at a time
    return torch.from_numpy((bits >= round(rate * LEVELS)).view(np.uint8)).view(like.shape)


# By hand: torch.library.custom_op takes no tags before torch 2.8.
DRAW_KEPT = "unified_video_action::draw_kept"
torch.library.define(DRAW_KEPT, "(Tensor like, float rate) -> Tensor", tags=(COMPILED, RANDOM))
torch.library.impl(DRAW_KEPT, "cpu", _draw_kept)
torch.library.register_fake(DRAW_KEPT, lambda like, rate: like.new_empty(like.shape, dtype=torch.uint8))
draw_kept = torch.ops.unified_video_action.draw_kept.default


class _Kept(torch.autograd.Function):
    """x where `kept` is 1, times a factor. Of the mask a byte an element waits for the backward pass, not a float."""

    @staticmethod
    def forward(ctx, x: Tensor, kept: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.factor = factor
        return kept.to(x.dtype).mul_(factor) * x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return kept.to(gradient.dtype).mul_(ctx.factor) * gradient, None, None


class Dropout(nn.Dropout):
    """As nn.Dropout; on a CPU in a tenth of its time, with other draws."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        # What is kept is scaled by the probability that the draws really have.
        return _Kept.apply(x, draw_kept(x, self.p), LEVELS / (LEVELS - round(self.p * LEVELS)))
