"""Which matrix products a computation is taken to consist of."""

import torch
import torch.nn.functional as F
from torch import nn

from unified_video_action.evaluation.products import Products, time_products
from unified_video_action.model.attention import attend


class Counter:
    """A bench for which every call takes a second; it keeps what was computed."""

    repeats = 2

    def __init__(self) -> None:
        self.results = []

    def time(self, run) -> float:
        self.results.append(run())
        return 1.0


def products_of(compute) -> Products:
    with Products() as found:
        compute()
    return found


def test_every_product_of_both_passes_is_timed_once_and_counted_as_often_as_it_occurs():
    layers = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8))
    x = torch.randn(5, 8)
    bench = Counter()
    products = products_of(lambda: layers(x).sum().backward())
    assert time_products(bench, products) == 2 + 3  # no gradient of the input
    shapes = {tuple(result.shape) for result in bench.results}
    assert shapes == {(5, 8), (8, 8)}
    assert len(bench.results) == (1 + bench.repeats) * 3  # forward, by the weight, by the input


def test_fused_attention_counts_as_six_products_of_each_head():
    query, key = torch.randn(1, 2, 16, 8, requires_grad=True), torch.randn(1, 2, 24, 8, requires_grad=True)
    products = products_of(lambda: F.scaled_dot_product_attention(query, key, key).sum().backward())
    bench = Counter()
    assert time_products(bench, products) == 2 * 6
    scores, by_query, by_key = (16, 24), (16, 8), (24, 8)
    assert {tuple(result.shape) for result in bench.results} == {scores, by_query, by_key}


def test_attention_in_parts_counts_as_the_products_that_it_does():
    qkv = torch.randn(1, 1024, 3 * 2 * 8, requires_grad=True)  # scores of one head at a time
    bench = Counter()
    assert time_products(bench, products_of(lambda: attend(qkv, 2, 0.1)[0].sum().backward())) == 2 * 6
    assert {tuple(result.shape) for result in bench.results} == {(1, 1024, 1024), (1, 1024, 8)}
