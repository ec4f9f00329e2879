"""The further changes of colour that frames of hand-held grippers are trained with."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from tests.shrunk import read
from unified_video_action.dataset.augmentation import VideoAugmentation
from unified_video_action.instantiate import instantiate

VIDEO = np.random.default_rng(0).integers(60, 180, (3, 3, 24, 24), dtype=np.uint8)
STILL = {"crop_probability": 0, "blur_probability": 0}


def test_each_does_what_it_says() -> None:
    tensor, rng = torch.from_numpy(VIDEO), np.random.default_rng
    grey = VideoAugmentation(**STILL, grayscale_probability=1)(VIDEO, rng(0))
    assert (grey[:, 0] == grey[:, 1]).all() and (grey[:, 1] == grey[:, 2]).all()
    wide = VideoAugmentation(**STILL, autocontrast_probability=1)(VIDEO, rng(0))
    assert (wide.min(axis=(-2, -1)) == 0).all() and (wide.max(axis=(-2, -1)) >= 254).all()
    for factor in (0.0, 1.0, 2.0):
        fixed = VideoAugmentation(**STILL, sharpness=(factor, factor), sharpness_probability=1)
        assert np.array_equal(fixed(VIDEO, rng(0)), functional.adjust_sharpness(tensor, factor).numpy())
        steps = np.abs(np.diff(fixed(VIDEO, rng(0)).astype(int))).mean() - np.abs(np.diff(VIDEO.astype(int))).mean()
        assert np.sign(np.round(steps)) == np.sign(factor - 1)


def test_chances_are_kept() -> None:
    half = VideoAugmentation(**STILL, grayscale_probability=0.2)
    grey = [np.ptp(half(VIDEO, np.random.default_rng(seed)), axis=1).max() == 0 for seed in range(400)]
    assert np.mean(grey) == pytest.approx(0.2, abs=0.06)
    jitter = VideoAugmentation(**STILL, jitter=(0.3, 0, 0, 0), jitter_probability=0.8)
    kept = [np.array_equal(jitter(VIDEO, np.random.default_rng(seed)), VIDEO) for seed in range(200)]
    assert np.mean(kept) == pytest.approx(0.2, abs=0.08)


def test_recipes_without_them_draw_as_before() -> None:
    """Crop (does, corner), blur (does, sigma), jitter (amounts, order): the same numbers as ever."""
    recipe = VideoAugmentation(crop_probability=1, blur_probability=0, jitter=(0.2, 0, 0, 0))
    rng = np.random.default_rng(5)
    rng.random(), rng.random(2), rng.random(), rng.uniform(0.1, 2.0)
    factor = 1 + 0.2 * rng.uniform(-1, 1, 4)[0]
    flat = np.full((1, 3, 24, 24), 100, np.uint8)
    assert abs(int(recipe(flat, np.random.default_rng(5))[0, 0, 0, 0]) - 100 * factor) <= 1


def test_the_preset_has_the_papers_list() -> None:
    config = read("uva_umi")["task"]["dataset"]["augmentation"]
    augmentation = instantiate(config, VideoAugmentation, "augmentation")
    assert int(224 * augmentation.crop) == 208 and augmentation.crop_probability == augmentation.blur_probability == 0.5
    assert augmentation.sharpness == (0.0, 2.0) and augmentation.blur_sigma == (0.1, 2.0)
    changed = augmentation(np.repeat(VIDEO[:1], 2, axis=0), np.random.default_rng(1))
    assert (changed[0] == changed[1]).all() and (changed != VIDEO[:1]).any()


@pytest.mark.parametrize(
    "field",
    [{"grayscale_probability": 2}, {"sharpness": (1.0, 0.5)}, {"sharpness": (1.0,)}, {"jitter_probability": -1}],
)
def test_bad_fields_are_named(field) -> None:
    with pytest.raises(ValueError, match=f"augmentation.{next(iter(field))}"):
        VideoAugmentation(**field)
