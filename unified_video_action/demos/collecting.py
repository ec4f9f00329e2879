"""What collectors share: their options, processes and tasks, and the loop that keeps what succeeds."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import logging
import multiprocessing
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import gymnasium
import numpy as np
from numcodecs.abc import Codec
from tqdm import tqdm

from unified_video_action.dataset.demonstrations import new_store, require_new_store

log = logging.getLogger(__name__)
Item, Result = TypeVar("Item"), TypeVar("Result")

COLLECTORS = {  # task -> module and class
    "pusht": "pusht.Collector",
    "pusht_m": "pusht.RandomGoalCollector",
    "block_push": "block_push.Collector",
    "lift": "lift.Collector",
    "sim_arm": "sim_arm.expert.Collector",
    "umi": "umi_synthetic.Collector",
}


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt of an expert."""

    success: bool
    measures: dict[str, float] = dataclasses.field(default_factory=dict)  # for the log
    episode: Any = None  # what the collector's writer takes; where it failed, nothing


class Collector(ABC):
    """A frozen dataclass whose fields are options. An attempt is the same in any process and in any order."""

    @abstractmethod
    def __call__(self, attempt: int) -> Attempt: ...

    @abstractmethod
    def writer(self, output: Path, task: str) -> AbstractContextManager[Callable[[Any], None]]:
        """A context in which episodes are added to `output`. Raises ValueError for an output of
        another kind, FileExistsError for one that is there."""

    def measuring(self) -> Collector:
        """A collector for attempts that nobody keeps."""
        return self


class ZarrCollector(Collector):
    """Episodes are pairs (arrays, meta) for a store in the layout of the published PushT archive.

    Row i of every array belongs to the moment just before action i: img uint8 (T, H, W, 3), action float32 (T, D), ...
    A disturbance leads the expert off its way while its own choices are what is recorded, so that a policy learns the
    way back (DART, Laskey et al. 2017). What replays to such an episode's states is data/executed.
    """

    max_steps: int  # control steps after which an attempt is given up
    disturbance: float  # standard deviation of a slow drift of what is done, in the units of actions

    def play(
        self, env: gymnasium.Env, act: Callable[[np.ndarray], np.ndarray], seed: int, rng: np.random.Generator,
        low: float | np.ndarray, high: float | np.ndarray,
    ) -> tuple[list[dict[str, np.ndarray]], list[dict[str, Any]]]:  # fmt: skip
        """Play from the start of `seed` until success, or for `max_steps`; `act` takes states.

        Returns:
            Of each of the T steps the observation, `action` and `executed`; the T + 1 infos.
        """
        observation, info = env.reset(seed=seed)
        rows, infos, drift = [], [info], np.zeros(2)
        while not infos[-1]["is_success"] and len(rows) < self.max_steps:
            action = act(infos[-1]["state"])
            drift = 0.8 * drift + 0.6 * rng.normal(0, self.disturbance, 2)
            executed = np.clip(action + drift, low, high).astype(np.float32)
            rows.append({**observation, "action": action, "executed": executed})
            observation, *_, info = env.step(executed)
            infos.append(info)
        return rows, infos

    def pictures(self) -> Codec | None:
        """What codes frames, each in a chunk of its own; None: they are kept as they are, many in a chunk."""
        return None

    @contextlib.contextmanager
    def writer(self, output: Path, task: str) -> Iterator[Callable[[Any], None]]:
        require_new_store(output)
        with new_store(output, self.pictures()) as store:
            yield lambda episode: store.append(*episode)
            store.describe(source="scripted expert", task=task, **dataclasses.asdict(self))


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


def option(default: Any, text: str) -> Any:
    """A field of a collector; scripts/collect_demos.py makes an option of it, with this help."""
    return dataclasses.field(default=default, metadata={"help": text})


def load_collector(task: str) -> type[Collector]:
    """Raises ValueError that lists the tasks."""
    if task not in COLLECTORS:
        raise ValueError(f"no scripted expert for task {task!r}; there are experts for: {', '.join(COLLECTORS)}")
    module, name = COLLECTORS[task].rsplit(".", 1)
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)


def collect(collector: Collector, task: str, count: int, output: Path | None, workers: int) -> None:
    """Write the first `count` successful episodes to `output`; None: only play them. Raises FileExistsError where
    `output` exists, ValueError where the expert hardly ever succeeds."""
    measures: list[dict[str, float]] = []
    opened = contextlib.nullcontext() if output is None else collector.writer(output, task)
    player = collector.measuring() if output is None else collector
    with opened as append, contextlib.closing(in_order(player, itertools.count(), workers)) as attempts:
        with tqdm(total=count, unit="episode", desc="collecting") as bar:
            for played, attempt in enumerate(attempts, start=1):
                if attempt.success:
                    if append is not None:
                        append(attempt.episode)
                    measures.append(attempt.measures)
                    bar.update()
                elif played - len(measures) > 20 + 20 * max(1, len(measures)):  # below about 1 in 20
                    raise ValueError(f"the expert succeeded in only {len(measures)} of {played} attempts")
                if len(measures) == count:
                    break
    means = "".join(f", mean {name} {np.mean([each[name] for each in measures]):.3f}" for name in measures[0])
    log.info("success %d of %d attempts (%.1f %%)%s", count, played, 100 * count / played, means)
    if output is not None:
        log.info("%d episodes in %s", count, output)
