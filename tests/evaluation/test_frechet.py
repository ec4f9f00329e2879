from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage

from unified_video_action.env.pusht.env import render_states
from unified_video_action.evaluation.frechet import I3D, codec_features, frechet_distance, frechet_interval
from unified_video_action.vae.pusht_tiny import PushTTiny


def test_of_two_normal_distributions_it_is_the_known_formula():
    rng = np.random.default_rng(0)
    mixing, shift = rng.standard_normal((5, 5)), rng.standard_normal(5)
    x, y = rng.standard_normal((400, 5)), rng.standard_normal((300, 5)) @ mixing + shift
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 3) == pytest.approx(45)  # a shift alone: 5 times 3 squared
    few = np.random.default_rng(1).standard_normal((6, 20))  # samples than dimensions
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6) and frechet_distance(few, 2 * few) > 1
    with pytest.raises(ValueError, match="infs or NaNs"):
        frechet_distance(np.full((3, 2), np.nan), x[:, :2])


def test_the_interval_covers_the_distance_and_counts_groups():
    rng = np.random.default_rng(2)
    x, y, groups = rng.standard_normal((200, 4)), rng.standard_normal((200, 4)) + 1, np.repeat(np.arange(20), 10)
    found = frechet_interval(x, y, groups)
    assert found["low"] < found["value"] < found["high"] and found["value"] == frechet_distance(x, y)
    alike = np.repeat(rng.standard_normal((20, 4)), 10, axis=0)  # episodes of equal clips: as good as 20 clips
    assert (
        frechet_interval(alike, alike + 1 + rng.standard_normal((20, 4)).repeat(10, 0), groups)["high"] > found["high"]
    )


def test_codec_features_order_corruptions_by_their_strength():
    rng = np.random.default_rng(3)
    low, high = (40, 40, 120, 120, -np.pi), (470, 470, 390, 390, np.pi)
    starts = rng.uniform(low, high, size=(60, 1, 5))
    moves = rng.normal(0, (8, 8, 4, 4, 0.05), size=(60, 1, 5)) * np.arange(4)[None, :, None]  # (60, 4, 5)
    drawn = render_states((starts + moves).reshape(-1, 5), (256.0, 256.0, np.pi / 4), 96)
    frames = torch.from_numpy(np.asarray(drawn)).permute(0, 3, 1, 2).unflatten(0, (60, 4))
    codec = PushTTiny()

    def features(clips: torch.Tensor) -> np.ndarray:
        return codec_features(codec.encode(clips))

    true = features(frames)

    def blurred(sigma: float) -> torch.Tensor:
        return torch.from_numpy(ndimage.gaussian_filter(frames.numpy(), (0, 0, 0, sigma, sigma)))

    def noisy(size: float) -> torch.Tensor:
        noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
        return (frames + size * noise).clamp(0, 255).to(torch.uint8)

    def frozen(steps: float) -> torch.Tensor:  # the last frames repeat an earlier one
        return torch.cat([frames[:, : 4 - int(steps)], frames[:, :1].expand(-1, int(steps), -1, -1, -1)], dim=1)

    for corrupt, strengths in ((blurred, (1, 2, 4)), (noisy, (10, 30, 90)), (frozen, (1, 3))):
        found = [frechet_distance(true, features(corrupt(strength))) for strength in strengths]
        assert found == sorted(found) and found[0] > 0 and found[-1] > 1.5 * found[0]


def test_fvd_without_its_weights_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="i3d_torchscript.pt"):
        I3D(tmp_path / "absent.pt", torch.device("cpu"))


def test_i3d_gets_clips_as_it_was_trained_on_them(tmp_path: Path):
    class Seen(torch.nn.Module):
        def forward(self, video: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
            assert not rescale and not resize and return_features
            return torch.stack([video.amin((1, 2, 3, 4)), video.amax((1, 2, 3, 4)), video[:, 0].mean((1, 2, 3))], 1)

    torch.jit.script(Seen()).save(str(tmp_path / "i3d.pt"))
    frames = torch.zeros(3, 4, 3, 32, 32, dtype=torch.uint8)
    frames[:, :, 0], frames[:, 3, 1] = 255, 128
    found = I3D(tmp_path / "i3d.pt", torch.device("cpu")).features(frames, rows=2)
    assert found.shape == (3, 3) and np.allclose(found, [-1, 1, 1])
