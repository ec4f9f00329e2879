from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from unified_video_action.evaluation.frechet import I3D, frechet_distance


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
