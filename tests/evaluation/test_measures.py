from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage

from unified_video_action.env.pusht.env import render_states
from unified_video_action.evaluation.bootstrap import Bootstrap
from unified_video_action.evaluation.frechet import I3D, codec_features, frechet_distance
from unified_video_action.evaluation.inverse_dynamics import pose_errors, standing_still, summary
from unified_video_action.poses import EndEffectorSpec
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


GROUPS = np.repeat(np.arange(20), 5)


def test_intervals_contain_what_they_should_and_groups_stay_together() -> None:
    rng = np.random.default_rng(0)
    of_group = rng.normal(10, 2, 20)
    values = of_group[GROUPS][:, None] + rng.normal(0, 0.1, (100, 3))
    mean, median = Bootstrap(GROUPS).mean(values), Bootstrap(GROUPS).median(values)
    assert mean["value"] == pytest.approx(values.mean()) and mean["low"] < mean["value"] < mean["high"]
    assert 1 < mean["high"] - mean["low"] == pytest.approx(2 * 1.96 * of_group.std() / np.sqrt(20), rel=0.2)
    assert median["value"] == pytest.approx(np.median(values), abs=0.3) and median["low"] < median["high"]
    assert Bootstrap(np.arange(100)).mean(values)["high"] - Bootstrap(np.arange(100)).mean(values)["low"] < 1


def test_ratios_are_paired_and_nan_does_not_count() -> None:
    rng = np.random.default_rng(0)
    under = rng.uniform(1, 20, (100, 4))
    under[:, 3] = np.nan
    ratio = Bootstrap(GROUPS).ratio(3 * under, under)
    assert ratio == pytest.approx({"value": 3.0, "low": 3.0, "high": 3.0})
    other = 3 * under
    other[0, 0] = np.nan
    assert Bootstrap(GROUPS).ratio(other, under)["value"] == pytest.approx(3.0)
    nothing, unknown, bootstrap = dict.fromkeys(("value", "low", "high")), np.full((100, 2), np.nan), Bootstrap(GROUPS)
    assert bootstrap.mean(unknown) == bootstrap.median(unknown) == bootstrap.ratio(unknown, unknown) == nothing
    assert bootstrap.ratio(np.ones((100, 1)), np.zeros((100, 1))) == nothing


END_EFFECTOR = EndEffectorSpec({"position": "position"})
UPRIGHT = [1, 0, 0, 0, 1, 0]
QUARTER_TURN = [0, -1, 0, 1, 0, 0]  # first two rows of a turn by 90 degrees about z


def chunk(*steps: list[float]) -> np.ndarray:
    """(1, A, 10) of one window."""
    return np.float32([steps])


def test_centimetres_and_degrees() -> None:
    true = chunk([0.00, 0, 0, *UPRIGHT, 0.05], [0.10, 0, 0, *QUARTER_TURN, 0.05])
    predicted = chunk([0.03, 0.04, 0, *UPRIGHT, 0.01], [0.10, 0, 0.02, *UPRIGHT, 0.05])
    for chunks, centimetres, degrees in (
        (predicted, [5.0, 2.0], [0, 90]),
        (standing_still(true, END_EFFECTOR), [0, 10], [0, 90]),
    ):
        position, rotation = pose_errors(chunks, true, np.array([[True, True]]), END_EFFECTOR)
        np.testing.assert_allclose(position, [centimetres], atol=1e-4)
        np.testing.assert_allclose(rotation, [degrees], atol=1e-3)
    beyond = pose_errors(predicted, true, np.array([[True, False]]), END_EFFECTOR)  # the second step does not count
    assert [summary(errors, np.zeros(1))["value"] for errors in beyond] == pytest.approx([5, 0], abs=1e-4)
