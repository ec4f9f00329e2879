"""What collectors share: their options, the tasks that have one, and the loop that keeps what succeeds."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from unified_video_action.dataset.demonstrations import new_store, require_new_store
from unified_video_action.env.collecting import in_order

log = logging.getLogger(__name__)

COLLECTORS = {  # task -> module and class
    "pusht": "pusht.Collector",
    "pusht_m": "pusht.RandomGoalCollector",
    "block_push": "block_push.Collector",
    "lift": "lift.Collector",
    "sim_arm": "sim_arm.expert.Collector",
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
        """A context in which episodes are added to `output`.

        Raises:
            ValueError: an output of another kind. FileExistsError: it exists.
        """

    def measuring(self) -> Collector:
        """A collector for attempts that nobody keeps."""
        return self


class ZarrCollector(Collector):
    """Episodes are pairs (arrays, meta) for a store in the layout of the published PushT archive.

    Row i of every array belongs to the moment just before action i: img uint8 (T, H, W, 3), action float32 (T, D), ...
    """

    @contextlib.contextmanager
    def writer(self, output: Path, task: str) -> Iterator[Callable[[Any], None]]:
        require_new_store(output)
        with new_store(output) as store:
            yield lambda episode: store.append(*episode)
            store.describe(source="scripted expert", task=task, **dataclasses.asdict(self))


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
    """Write the first `count` successful episodes to `output`; None: only play them.

    Raises:
        FileExistsError: `output` exists. RuntimeError: the expert hardly ever succeeds.
    """
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
                elif played - len(measures) > 20 + count:
                    raise RuntimeError(f"the expert succeeded in only {len(measures)} of {played} attempts")
                if len(measures) == count:
                    break
    means = "".join(f", mean {name} {np.mean([each[name] for each in measures]):.3f}" for name in measures[0])
    log.info("success %d of %d attempts (%.1f %%)%s", count, played, 100 * count / played, means)
    if output is not None:
        log.info("%d episodes in %s", count, output)
