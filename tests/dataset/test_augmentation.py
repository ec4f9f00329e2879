import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import gaussian_blur

from unified_video_action.dataset.augmentation import VideoAugmentation

VIDEO = np.random.default_rng(0).integers(0, 256, (5, 3, 96, 96), dtype=np.uint8)


def test_it_equals_crop_resize_and_blur_done_one_after_another():
    augmentation = VideoAugmentation(crop_probability=1, blur_probability=1)
    rng = np.random.default_rng(3)
    result = augmentation(VIDEO, np.random.default_rng(3))
    rng.random()
    top, left = (rng.random(2) * 6).astype(int)  # a 91 px crop has 6 places
    rng.random()
    sigma = rng.uniform(0.1, 2.0)
    crop = torch.from_numpy(VIDEO).float()[..., top : top + 91, left : left + 91]
    expected = gaussian_blur(interpolate(crop, size=(96, 96), mode="bilinear"), [5, 5], [sigma, sigma])
    assert np.abs(expected.numpy() - result).max() <= 0.51  # rounding to whole levels


def test_all_frames_of_a_video_change_alike():
    still = np.repeat(VIDEO[:1], 4, axis=0)
    result = VideoAugmentation(crop_probability=1, blur_probability=1)(still, np.random.default_rng(0))
    assert (result == result[0]).all() and (result != still).any()


def test_the_generator_decides_and_some_videos_stay_as_they_are():
    augmentation = VideoAugmentation()
    results = [augmentation(VIDEO, np.random.default_rng(seed)) for seed in range(40)]
    assert np.array_equal(results[7], augmentation(VIDEO, np.random.default_rng(7)))
    unchanged = sum(np.array_equal(result, VIDEO) for result in results)
    assert 3 <= unchanged <= 18  # a quarter
    assert len({result.tobytes() for result in results}) > 25


@pytest.mark.parametrize(
    "field",
    [{"crop": 0}, {"crop_probability": 1.5}, {"blur_probability": -1}, {"blur_kernel": 4}, {"blur_sigma": (2, 1)}],
)
def test_bad_fields_are_named(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        VideoAugmentation(**field)


ONLY_COLOURS = {"crop_probability": 0, "blur_probability": 0}


def test_colours_jitter_within_their_ranges_and_alike_in_all_frames():
    grey = np.full((2, 3, 4, 4), 100, np.uint8)
    brightness = VideoAugmentation(**ONLY_COLOURS, jitter=(0.2, 0, 0, 0))
    levels = [brightness(grey, np.random.default_rng(seed)) for seed in range(60)]
    assert all((level == level[0, 0, 0, 0]).all() for level in levels)
    values = [int(level[0, 0, 0, 0]) for level in levels]
    assert 80 <= min(values) < 85 and 115 < max(values) <= 120

    everything = VideoAugmentation(**ONLY_COLOURS, jitter=(0.2, 0.2, 0.2, 0.05))
    changed = everything(VIDEO, np.random.default_rng(1))
    assert changed.dtype == np.uint8 and changed.shape == VIDEO.shape and not np.array_equal(changed, VIDEO)
    assert np.array_equal(changed, everything(VIDEO, np.random.default_rng(1)))
    assert not np.array_equal(changed, everything(VIDEO, np.random.default_rng(2)))


def test_hue_turns_colours_and_leaves_grey():
    hue = VideoAugmentation(**ONLY_COLOURS, jitter=(0, 0, 0, 0.5))
    red = np.zeros((1, 3, 2, 2), np.uint8)
    red[:, 0] = 200
    turned = hue(red, np.random.default_rng(0))
    assert turned.max() == 200 and turned[0, 1:].max() > 20, "no longer pure red, as bright"
    grey = np.full((1, 3, 2, 2), 90, np.uint8)
    assert np.array_equal(hue(grey, np.random.default_rng(0)), grey)


@pytest.mark.parametrize("jitter", [(0.2, 0.2, 0.2), (0.2, 0.2, 0.2, 0.6), (-0.1, 0, 0, 0)])
def test_impossible_jitter_is_refused(jitter):
    with pytest.raises(ValueError, match="augmentation.jitter"):
        VideoAugmentation(jitter=jitter)
