"""Random changes of a video's look: what they do, and that a generator decides all of it."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional

from unified_video_action.dataset.augmentation import VideoAugmentation

VIDEO = np.random.default_rng(0).integers(0, 256, (5, 3, 96, 96), dtype=np.uint8)
STILL = {"crop_probability": 0, "blur_probability": 0}
rng = np.random.default_rng


def test_it_equals_crop_resize_and_blur_done_one_after_another():
    result, rolls = VideoAugmentation(crop_probability=1, blur_probability=1)(VIDEO, rng(3)), rng(3)
    rolls.random()
    top, left = (rolls.random(2) * 6).astype(int)  # a 91 px crop has 6 positions
    rolls.random()
    sigma = rolls.uniform(0.1, 2.0)
    crop = torch.from_numpy(VIDEO).float()[..., top : top + 91, left : left + 91]
    expected = functional.gaussian_blur(interpolate(crop, size=(96, 96), mode="bilinear"), [5, 5], [sigma, sigma])
    assert np.abs(expected.numpy() - result).max() <= 0.51  # rounding to whole levels


def test_the_generator_decides_and_some_videos_stay_as_they_are():
    augmentation, still = VideoAugmentation(), np.repeat(VIDEO[:1], 4, axis=0)
    results = [augmentation(VIDEO, rng(seed)) for seed in range(40)]
    assert np.array_equal(results[7], augmentation(VIDEO, rng(7)))
    assert 3 <= sum(np.array_equal(result, VIDEO) for result in results) <= 18  # a quarter
    assert len({result.tobytes() for result in results}) > 25
    alike = VideoAugmentation(crop_probability=1, blur_probability=1, jitter=(0.2, 0.2, 0.2, 0.05))(still, rng(0))
    assert (alike == alike[0]).all() and (alike != still).any() and alike.dtype == np.uint8


def test_colours_jitter_within_their_ranges():
    grey, red = np.full((2, 3, 4, 4), 100, np.uint8), np.zeros((1, 3, 2, 2), np.uint8)
    brightness, rolls = VideoAugmentation(**STILL, jitter=(0.2, 0, 0, 0)), rng(5)
    # Crop (does, corner), blur (does, sigma), jitter (amounts, order): the same numbers whatever was added since.
    rolls.random(), rolls.random(2), rolls.random(), rolls.uniform(0.1, 2.0)
    factor = 1 + 0.2 * rolls.uniform(-1, 1, 4)[0]
    assert abs(int(brightness(grey, rng(5))[0, 0, 0, 0]) - 100 * factor) <= 1
    red[:, 0] = 200
    hue = VideoAugmentation(**STILL, jitter=(0, 0, 0, 0.5))
    turned = hue(red, rng(0))
    assert turned.max() == 200 and turned[0, 1:].max() > 20, "no longer pure red, as bright"
    assert np.array_equal(hue(grey, rng(0)), grey)
    for wrong in ({"crop": 0}, {"blur_kernel": 4}, {"blur_sigma": (2, 1)}, {"jitter": (0.2, 0.2, 0.2, 0.6)}):
        with pytest.raises(ValueError, match=f"augmentation.{next(iter(wrong))}"):
            VideoAugmentation(**wrong)


def test_sharpness_contrast_and_grey_do_what_they_say():
    video = VIDEO[..., :24, :24] // 2 + 60
    grey = VideoAugmentation(**STILL, grayscale_probability=1)(video, rng(0))
    assert (grey[:, 0] == grey[:, 1]).all() and (grey[:, 1] == grey[:, 2]).all()
    wide = VideoAugmentation(**STILL, autocontrast_probability=1)(video, rng(0))
    assert (wide.min(axis=(-2, -1)) == 0).all() and (wide.max(axis=(-2, -1)) >= 254).all()
    for factor in (0.0, 2.0):
        fixed = VideoAugmentation(**STILL, sharpness=(factor, factor), sharpness_probability=1)(video, rng(0))
        assert np.array_equal(fixed, functional.adjust_sharpness(torch.from_numpy(video), factor).numpy())
    half = VideoAugmentation(**STILL, grayscale_probability=0.2)
    shares = [np.ptp(half(video, rng(seed)), axis=1).max() == 0 for seed in range(400)]
    assert np.mean(shares) == pytest.approx(0.2, abs=0.06)
