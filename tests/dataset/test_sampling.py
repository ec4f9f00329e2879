"""Sample order is a function of (seed, step) and of nothing else."""

import numpy as np
import pytest

from unified_video_action.dataset.sampling import StepBatchSampler, hash64, sample_seed, uniform


def test_order_does_not_depend_on_where_a_run_starts():
    whole = list(StepBatchSampler(100, 12, seed=3, start_step=0, stop_step=40))
    assert list(StepBatchSampler(100, 12, seed=3, start_step=17, stop_step=40)) == whole[17:]
    assert len(whole) == len(StepBatchSampler(100, 12, seed=3, stop_step=40)) == 40


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_global_batch_in_contiguous_slices(world):
    whole = list(StepBatchSampler(50, 12, seed=3, stop_step=10))
    shares = [list(StepBatchSampler(50, 12, seed=3, stop_step=10, rank=rank, world=world)) for rank in range(world)]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole


def test_every_epoch_visits_every_window_once_in_another_order():
    pairs = sum(StepBatchSampler(30, 12, seed=0, stop_step=5), [])  # two epochs; the third batch straddles them
    first, second = [i for i, _ in pairs[:30]], [i for i, _ in pairs[30:]]
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second and len({seed for _, seed in pairs}) == 60
    assert pairs != sum(StepBatchSampler(30, 12, seed=1, stop_step=5), [])
    (larger,) = StepBatchSampler(3, 8, seed=0, stop_step=1)  # than the dataset
    assert np.bincount([index for index, _ in larger]).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_the_hash_never_changes():
    """Resumed runs rely on these values."""
    values = [int(hash64(0, 0)), int(hash64(42, 7)), int(hash64(-1))]
    assert values == [2391539541053276776, 9565922583761353000, 3303439293501059696]
    assert sample_seed(5, np.arange(3)).tolist() == [int(sample_seed(5, i)) for i in range(3)]
    seeds = sample_seed(0, np.arange(100_000))
    assert seeds.dtype == np.int64 and seeds.min() >= 0 and len(np.unique(seeds)) == 100_000


def test_uniform_draws_are_uniform_and_independent_between_streams():
    seeds = sample_seed(1, np.arange(20_000))
    first, second = uniform(seeds, 0), uniform(seeds, 1)
    assert 0 <= first.min() and first.max() < 1
    assert np.allclose(np.histogram(first, 10)[0] / 20_000, 0.1, atol=0.01)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
