"""Distances between sets of samples, against what is known of normal distributions."""

import math

import pytest
import torch

from unified_video_action.evaluation.distributions import energy_distance, spread


def normal(*shape: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return mean + scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_distributions_are_at_no_distance() -> None:
    distances = energy_distance(normal(200, 40, 3, seed=0), normal(200, 50, 3, seed=1))
    assert distances.shape == (200,)
    assert abs(distances.mean()) < 3 * distances.std() / math.sqrt(200)


@pytest.mark.parametrize(
    ("mean", "scale", "wanted"),
    [
        # 2 E|x - y| - E|x - x'| - E|y - y'| of N(0, 1) and N(mean, scale^2), by the mean of a folded normal.
        (10.0, 1.0, 20 - 4 / math.sqrt(math.pi)),
        (0.0, 3.0, math.sqrt(2 / math.pi) * (2 * math.sqrt(10) - math.sqrt(2) - math.sqrt(18))),
    ],
)
def test_the_distance_of_normal_distributions_is_the_known_one(mean: float, scale: float, wanted: float) -> None:
    distances = energy_distance(normal(400, 60, 1, seed=0), normal(400, 60, 1, seed=1, mean=mean, scale=scale))
    assert float(distances.mean()) == pytest.approx(wanted, rel=0.02)


def test_one_draw_is_not_enough() -> None:
    with pytest.raises(ValueError, match="at least 2 samples of each, got 1 and 5"):
        energy_distance(torch.zeros(1, 2), torch.zeros(5, 2))


def test_the_spread_is_the_distance_from_the_mean() -> None:
    x = normal(1000, 4, seed=0, scale=3.0)
    assert float(spread(x)) == pytest.approx(float((x - x.mean(0)).square().sum(-1).mean().sqrt()), rel=1e-3)
