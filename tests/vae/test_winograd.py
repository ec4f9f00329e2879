"""Winograd's convolution, and the norm that comes with it, against torch's."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unified_video_action.vae import winograd
from unified_video_action.vae.winograd import WinogradConv2d, channel_moments, group_affine, pays, transforms

ROUNDING = 1e-5  # of outputs around 1
ENCODER = [(128, 128, 64), (128, 128, 32), (128, 256, 32), (256, 256, 16), (512, 512, 8)]  # in, out, side (smaller)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make_conv(c_in: int, c_out: int, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(c_in, c_out, 3, padding=1, bias=bias).requires_grad_(False)


def last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)


def test_the_transforms_are_a_convolution_along_an_axis() -> None:
    output, kernel, window = transforms()
    x, g = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([x[i : i + 3] @ g[:3] for i in range(4)])
    assert (output @ ((kernel @ g[:3]) * (window @ x)) - expected).abs().max() < 1e-12


@pytest.mark.parametrize(("c_in", "c_out", "side"), ENCODER)
def test_the_encoders_convolutions(c_in: int, c_out: int, side: int) -> None:
    conv, x = make_conv(c_in, c_out), torch.randn(2, c_in, side, side, generator=torch.Generator().manual_seed(1))
    expected = conv.double()(x.double())
    made = WinogradConv2d(conv.float())(last(x), torch.full((2, side, side, c_out), torch.nan))
    assert (made - last(expected)).abs().max() < ROUNDING and expected.std() > 0.3


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (4, 4), (5, 9), (16, 6), (23, 17), (40, 3)])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_any_size(size: tuple[int, int], add: bool, bias: bool, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "BLOCK", 128)  # several blocks even in small images
    conv, x = make_conv(7, 10, bias), torch.randn(3, 7, *size, generator=torch.Generator().manual_seed(1))
    y = torch.randn(3, 10, *size, generator=torch.Generator().manual_seed(2))
    expected = conv(x) + y if add else conv(x)
    for _ in range(2):  # the second time in used memory
        made = last(y)
        assert WinogradConv2d(conv)(last(x), made, add=add) is made
        assert (made - last(expected)).abs().max() < ROUNDING
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("offset", [0.0, 30.0])  # far from 0 the variance must not be lost
@pytest.mark.parametrize("size", [(16, 16), (9, 70)])
def test_norm_and_activation_on_the_way_in(offset: float, size: tuple[int, int], threads: int) -> None:
    conv, norm = make_conv(16, 8), nn.GroupNorm(4, 16, eps=1e-6).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    norm.weight.normal_(1, 0.3, generator=generator)
    norm.bias.normal_(0, 0.3, generator=generator)
    x = torch.randn(2, 16, *size, generator=generator) * torch.rand(16, 1, 1, generator=generator) + offset
    expected = conv.double()(F.silu(norm.double()(x.double())))
    conv.float(), norm.float()
    made = WinogradConv2d(conv)(last(x), torch.empty(2, *size, 8), group_affine(norm, last(x)))
    assert (made - last(expected)).abs().max() < ROUNDING * (1 + offset)  # x itself is rounded
    mean, spread = channel_moments(last(x))
    variance, middle = torch.var_mean(x.double(), dim=(2, 3), correction=0)
    torch.testing.assert_close(mean, middle, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(spread, variance, rtol=1e-5, atol=1e-7)


def test_weights_are_those_at_construction() -> None:
    conv, x = make_conv(8, 8), torch.ones(1, 8, 8, 8)
    fast = WinogradConv2d(conv)
    before = fast(x, torch.empty_like(x)).clone()
    conv.weight.mul_(2)
    conv.bias.add_(1)
    assert torch.equal(fast(x, torch.empty_like(x)), before)


def test_an_error_in_a_thread_is_not_lost(threads: int) -> None:
    def work(image: int, first: int) -> None:
        raise ValueError(f"block {image}, {first}")

    with pytest.raises(ValueError, match="block 0"):
        winograd.share_out(work, [(0, 0), (0, 1)])


def test_what_pays_is_a_matter_of_shape() -> None:
    assert pays(nn.Conv2d(128, 128, 3, padding=1), 256, 256) and pays(nn.Conv2d(256, 256, 3, padding=1), 32, 32)
    for other in (
        nn.Conv2d(3, 128, 3, padding=1),
        nn.Conv2d(128, 128, 3, stride=2),
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
    ):
        assert not pays(other, 256, 256)
    assert not pays(nn.Conv2d(256, 256, 3, padding=1), 16, 16)
