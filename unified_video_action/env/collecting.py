"""Episodes made in a simulator, and processes that make many of them."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass(frozen=True)
class Episode:
    """One episode: row i of every array belongs to the moment just before action i."""

    arrays: dict[str, np.ndarray]  # img uint8 (T, H, W, 3), action float32 (T, D), and what else the task has
    meta: dict[str, np.ndarray | float]  # what a store keeps of the episode
    measures: dict[str, float]  # for the log
    success: bool  # only then are there arrays


def in_order(make: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`make` of every item, in the items' order, which may be endless, by `workers` processes (1: by this one).

    Each process has one copy of `make`, which may keep a simulator from item to item.
    """
    if workers == 1:
        yield from map(make, items)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _adopt, (make,)) as pool:
        running = deque()
        try:
            for item in items:
                running.append(pool.submit(_make, item))
                if len(running) > 2 * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _adopt(make: Callable[[Item], Result]) -> None:
    _make.adopted = make


def _make(item: Item) -> Result:
    return _make.adopted(item)
