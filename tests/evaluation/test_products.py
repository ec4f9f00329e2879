"""Which matrix products a computation is taken to consist of."""

import torch
from torch import nn

from unified_video_action.evaluation.products import time_products


class Counter:
    """A bench for which every call takes a second; it keeps what was computed."""

    repeats = 2

    def __init__(self) -> None:
        self.results = []

    def time(self, run) -> float:
        self.results.append(run())
        return 1.0


def test_every_product_of_both_passes_is_timed_once_and_counted_as_often_as_it_occurs():
    layers = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8))
    x = torch.randn(5, 8)
    bench = Counter()
    assert time_products(bench, lambda: layers(x).sum().backward()) == 2 + 3  # no gradient of the input
    shapes = {tuple(result.shape) for result in bench.results}
    assert shapes == {(5, 8), (8, 8)}
    assert len(bench.results) == (1 + bench.repeats) * 3  # forward, by the weight, by the input


def test_fused_attention_is_a_product():
    query = torch.randn(1, 2, 16, 8, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert time_products(Counter(), lambda: attend(query, query, query).sum().backward()) == 2
