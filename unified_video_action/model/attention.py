"""Self-attention of a transformer block; where a CPU trains it, a few heads at a time so that scores stay in its cache.

`scaled_dot_product_attention` has no fast path with dropout on a CPU: it writes the scores of all heads to memory many
times and keeps several copies of them for the backward pass. Here one copy is kept.
"""

from collections.abc import Iterator

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor

from unified_video_action.model.dropout import COMPILED, LEVELS, RANDOM, draw_kept

AT_ONCE = 2**20  # scores that a CPU computes before it goes on to other heads


class SelfAttention(Attention):
    """As timm's, whose names it keeps."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        dropout = self.attn_drop.p
        plain = attn_mask is None and not is_causal and self.gate is None
        fast = self.fused_attn and not dropout  # by scaled_dot_product_attention
        if not self.training or x.device.type != "cpu" or fast or not plain:
            return super().forward(x, attn_mask, is_causal)
        qkv = self.qkv(x)  # (B, N, 3*H*d)
        if qkv.dtype != torch.float32:
            return super().forward(x)
        return self.proj_drop(self.proj(attend(qkv, self.num_heads, dropout)[0]))


def forward_attention(qkv: Tensor, heads: int, dropout: float) -> tuple[Tensor, Tensor, Tensor]:
    """Attention with dropout of its weights.

    Args:
        qkv: (B, N, 3*H*d) queries, keys and values, float32. heads: H.

    Returns:
        (B, N, H*d), and for the backward pass: (3, B*H, N, d) queries, keys and values, the queries scaled by
        d^-0.5 and the values by what dropout makes up for; (B*H, N, N) weights before dropout, negative where dropped.
    """
    batch, tokens, _ = qkv.shape
    parts = _split(qkv, heads)
    query, key, value = parts  # (B*H, N, d)
    query.mul_(query.shape[-1] ** -0.5)
    value.mul_(_makes_up(dropout))
    out = torch.empty_like(query)
    weights = qkv.new_empty(len(query), tokens, tokens)  # (B*H, N, N)
    space = torch.empty_like(weights[: _at_once(weights)])  # (n, N, N)
    for some in _some_heads(weights):
        scores = left = torch.bmm(query[some], key[some].mT, out=weights[some])  # (n, N, N)
        torch.softmax(scores, dim=-1, out=scores)
        if dropout:
            left = space[: len(scores)]
            scores.mul_(left.copy_(draw_kept(scores, dropout)).mul_(2).sub_(1))
            torch.clamp_min(scores, 0, out=left)
        torch.bmm(left, value[some], out=out[some])
    return _join(out, batch), parts, weights


def backward_attention(gradient: Tensor, parts: Tensor, weights: Tensor, dropout: float) -> Tensor:
    """Gradient by qkv (B, N, 3*H*d), given that by attention's output (B, N, H*d)."""
    query, key, value = parts
    batch = len(gradient)
    (above,) = _split(gradient, len(query) // batch, 1)  # (B*H, N, d)
    parts_gradient = torch.empty_like(parts)
    spaces = weights.new_empty(2, _at_once(weights), *weights.shape[1:])  # (2, n, N, N)
    for some in _some_heads(weights):
        before = left = weights[some]  # (n, N, N)
        space, by_scores = spaces[:, : len(before)]
        if dropout:
            left = torch.clamp_min(before, 0, out=space)
        torch.bmm(left.mT, above[some], out=parts_gradient[2, some])
        torch.bmm(above[some], value[some].mT, out=by_scores)
        by_scores.mul_(left)
        if dropout:
            before = torch.abs(before, out=space)
        by_scores.addcmul_(before, by_scores.sum(-1, keepdim=True), value=-1)
        torch.bmm(by_scores, key[some], out=parts_gradient[0, some])
        torch.bmm(by_scores.mT, query[some], out=parts_gradient[1, some])
    parts_gradient[0].mul_(query.shape[-1] ** -0.5)
    parts_gradient[2].mul_(_makes_up(dropout))
    return _join(parts_gradient, batch)


def _shapes_of_forward(qkv: Tensor, heads: int, dropout: float) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = qkv.shape
    return (
        qkv.new_empty(batch, tokens, width // 3),
        qkv.new_empty(3, batch * heads, tokens, width // 3 // heads),
        qkv.new_empty(batch * heads, tokens, tokens),
    )


def _shape_of_backward(gradient: Tensor, parts: Tensor, weights: Tensor, dropout: float) -> Tensor:
    return gradient.new_empty(*gradient.shape[:2], 3 * gradient.shape[2])


def _remember(ctx, inputs: tuple, output: tuple) -> None:
    ctx.dropout = inputs[2]
    ctx.save_for_backward(*output[1:])


def _differentiate(ctx, gradient: Tensor, *unused: Tensor) -> tuple[Tensor, None, None]:
    return attend_backward(gradient, *ctx.saved_tensors, ctx.dropout), None, None


# As operations of their own, so that torch.compile leaves them as they are.
ATTEND, ATTEND_BACKWARD = "unified_video_action::attend", "unified_video_action::attend_backward"
torch.library.define(
    ATTEND, "(Tensor qkv, int heads, float dropout) -> (Tensor, Tensor, Tensor)", tags=(COMPILED, RANDOM)
)
torch.library.impl(ATTEND, "cpu", forward_attention)
torch.library.register_fake(ATTEND, _shapes_of_forward)
torch.library.register_autograd(ATTEND, _differentiate, setup_context=_remember)
torch.library.define(
    ATTEND_BACKWARD, "(Tensor gradient, Tensor parts, Tensor weights, float dropout) -> Tensor", tags=(COMPILED,)
)
torch.library.impl(ATTEND_BACKWARD, "cpu", backward_attention)
torch.library.register_fake(ATTEND_BACKWARD, _shape_of_backward)
attend = torch.ops.unified_video_action.attend.default
attend_backward = torch.ops.unified_video_action.attend_backward.default


def _makes_up(dropout: float) -> float:
    return LEVELS / (LEVELS - round(dropout * LEVELS))


def _at_once(weights: Tensor) -> int:
    """Of how many heads (B*H, N, N) weights are computed together."""
    heads, tokens, _ = weights.shape
    return min(heads, max(1, AT_ONCE // tokens**2))


def _some_heads(weights: Tensor) -> Iterator[slice]:
    step = _at_once(weights)
    return (slice(first, first + step) for first in range(0, len(weights), step))


def _split(x: Tensor, heads: int, count: int = 3) -> Tensor:
    """(B, N, count*H*d) -> a copy (count, B*H, N, d)"""
    x = x.view(*x.shape[:2], count, heads, -1).permute(2, 0, 3, 1, 4)  # (count, B, H, N, d)
    return x.clone(memory_format=torch.contiguous_format).flatten(1, 2)


def _join(x: Tensor, batch: int) -> Tensor:
    """(count, B*H, N, d) or (B*H, N, d) -> (B, N, count*H*d)"""
    count = x.shape[0] if x.ndim == 4 else 1
    x = x.view(count, batch, -1, *x.shape[-2:]).permute(1, 3, 0, 2, 4)  # (B, N, count, H, d)
    return x.flatten(2).contiguous()
