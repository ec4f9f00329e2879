"""Attention and dropout as a CPU trains them, against their definitions."""

import pytest
import torch
from timm.models.vision_transformer import Attention
from torch import Tensor

from unified_video_action.model import attention
from unified_video_action.model.attention import SelfAttention, attend
from unified_video_action.model.dropout import LEVELS, Dropout


def defined(qkv: Tensor, heads: int, kept: Tensor, factor: float) -> Tensor:
    """Attention written out, of whose weights (B, H, N, N) some are `kept`."""
    batch, tokens, _ = qkv.shape
    query, key, value = qkv.view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, N, d)
    weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) * kept * factor
    return (weights @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("at_once", [1, 900, 2**20])  # one head, two (the last pass has one), all
def test_values_and_gradients_are_those_of_the_definition(dropout, at_once, monkeypatch):
    monkeypatch.setattr(attention, "AT_ONCE", at_once)
    torch.manual_seed(0)
    qkv = torch.randn(3, 20, 3 * 3 * 4, requires_grad=True)
    out, _, weights = attend(qkv, 3, dropout)
    kept = (weights > 0).view(3, 3, 20, 20)
    expected = defined(qkv, 3, kept, LEVELS / (LEVELS - round(dropout * LEVELS)))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    above = torch.randn_like(out)
    gradients = [torch.autograd.grad(result, qkv, above)[0] for result in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert kept.float().mean() == pytest.approx(1 - dropout, abs=0.03)


def test_a_module_in_training_equals_timms_and_draws_by_the_seed():
    torch.manual_seed(0)
    ours, theirs = SelfAttention(16, 2, qkv_bias=True), Attention(16, 2, qkv_bias=True)
    theirs.load_state_dict(ours.state_dict())
    ours.fused_attn = False
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    ours.attn_drop.p = 0.5

    def out(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return ours(x)

    assert torch.equal(out(1), out(1))
    assert not torch.equal(out(1), out(2))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-6)


def test_dropout_keeps_the_expectation_and_drops_the_same_gradients():
    torch.manual_seed(0)
    x = torch.ones(200, 501, requires_grad=True)  # no multiple of the four draws that come at once
    dropout = Dropout(0.1)
    y = dropout(x)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(LEVELS / (LEVELS - 6554)).item()}
    assert y.mean().item() == pytest.approx(1, abs=0.005)
    assert torch.equal(dropout.eval()(x), x)


def test_operations_are_what_torch_compile_takes_them_for():
    torch.library.opcheck(attend, (torch.randn(2, 5, 24, requires_grad=True), 2, 0.0))
