"""Collect demonstrations from a task's scripted expert, in the layout of the published PushT archive.

python scripts/collect_demos.py --task pusht -n 200 --output data/demos.zarr.zip
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import itertools
import logging
import multiprocessing
import os
import pkgutil
import shutil
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import zarr
from tqdm import tqdm

from unified_video_action import env as environments

log = logging.getLogger("collect_demos")
ROWS_PER_CHUNK = {"img": 32}  # frames are read a few at a time
DEFAULT_ROWS_PER_CHUNK = 2000


class DemonstrationStore:
    """A zarr (format 2) folder that grows by whole episodes: data/<name> (rows, ...), meta/episode_ends (episodes,)."""

    def __init__(self, folder: Path) -> None:
        self._root = zarr.open_group(folder, mode="w", zarr_format=2)
        self._arrays: dict[str, zarr.Array] = {}
        self.rows = 0

    def append(self, arrays: dict[str, np.ndarray], meta: dict[str, np.ndarray]) -> None:
        """Add one episode: arrays of equal length (T, ...), and one row of each `meta` entry."""
        self.rows += len(next(iter(arrays.values())))
        for name, values in arrays.items():
            self._extend(f"data/{name}", values, ROWS_PER_CHUNK.get(name, DEFAULT_ROWS_PER_CHUNK))
        self._extend("meta/episode_ends", np.array([self.rows], np.int64), DEFAULT_ROWS_PER_CHUNK)
        for name, value in meta.items():
            self._extend(f"meta/{name}", np.asarray(value)[None], DEFAULT_ROWS_PER_CHUNK)

    def describe(self, **attributes: str | int | float) -> None:
        self._root.attrs.update(attributes)

    def _extend(self, path: str, values: np.ndarray, rows_per_chunk: int) -> None:
        if path not in self._arrays:
            self._arrays[path] = self._root.create_array(
                path,
                shape=(0, *values.shape[1:]),
                chunks=(rows_per_chunk, *values.shape[1:]),
                dtype=values.dtype,
            )
        self._arrays[path].append(values)


def episodes_in_order(collect: Callable, workers: int) -> Iterator:
    """Episodes of attempts 0, 1, 2, ... in that order, without end, made by `workers` processes (1: by this one)."""
    if workers == 1:
        yield from map(collect, itertools.count())
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = deque()
        try:
            for attempt in itertools.count():
                running.append(pool.submit(collect, attempt))
                if len(running) > 2 * workers:
                    yield running.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def collect(collector: Callable, count: int, output: Path, workers: int, attributes: dict) -> None:
    """Write the first `count` successful episodes to `output`, which appears only when all of them are there.

    Raises FileExistsError when `output` exists, and RuntimeError when the expert hardly ever succeeds.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists already; choose another --output, or remove it first")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    coverages = []
    try:
        store = DemonstrationStore(partial)
        episodes = episodes_in_order(collector, workers)
        with contextlib.closing(episodes), tqdm(total=count, unit="episode", desc="collecting") as bar:
            for attempts, episode in enumerate(episodes, start=1):
                if episode.success:
                    store.append(episode.arrays, {"goal": episode.goal})
                    coverages.append(episode.coverage)
                    bar.update()
                elif attempts - len(coverages) > 20 + count:
                    raise RuntimeError(f"the expert succeeded in only {len(coverages)} of {attempts} attempts")
                if len(coverages) == count:
                    break
        store.describe(**attributes)
        publish(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("%d episodes, %d steps, in %s", count, store.rows, output)
    share = 100 * count / attempts
    log.info("success %d of %d attempts (%.1f %%), mean coverage %.3f", count, attempts, share, np.mean(coverages))


def publish(folder: Path, output: Path) -> None:
    """Give the finished store its name at once: the folder itself, or a zip of it."""
    if output.suffix == ".zarr":
        folder.rename(output)
        return
    packed = folder.with_name(folder.name + ".zip")
    try:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    undated = zipfile.ZipInfo(path.relative_to(folder).as_posix())  # the same bytes whenever it runs
                    archive.writestr(undated, path.read_bytes())
        packed.rename(output)
    finally:
        packed.unlink(missing_ok=True)


def load_collector(task: str) -> type:
    """The Collector of an environment's folder; ValueError that lists the tasks when there is none."""
    tasks = [
        module.name
        for module in pkgutil.iter_modules(environments.__path__)
        if module.ispkg and importlib.util.find_spec(f"{environments.__name__}.{module.name}.collect")
    ]
    if task not in tasks:
        raise ValueError(f"no scripted expert for task {task!r}; there are experts for: {', '.join(tasks)}")
    return importlib.import_module(f"{environments.__name__}.{task}.collect").Collector


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="environment whose expert plays")
    parser.add_argument("-n", "--episodes", type=int, default=200, help="successful episodes to collect (default 200)")
    parser.add_argument("--output", type=Path, required=True, help="a new folder NAME.zarr or file NAME.zarr.zip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes; the result does not depend on it")
    parser.add_argument("--goal", default="fixed", help="fixed, or random: another goal pose in every episode")
    parser.add_argument("--image-size", type=int, default=96, help="pixels (default 96)")
    parser.add_argument("--action-noise", type=float, help="pixels of slow drift on every action")
    parser.add_argument("--choice", type=float, help="how freely the expert chooses among good plans, in control steps")
    parser.add_argument("--mistakes", type=float, help="chance of a random move that the expert then makes good")
    parser.add_argument("--disturbance", type=float, help="pixels of slow drift in what is done but not recorded")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    variety = {name: getattr(options, name) for name in ("action_noise", "choice", "mistakes", "disturbance")}
    settings = {"seed": options.seed, "goal": options.goal, "image_size": options.image_size}
    settings |= {name: value for name, value in variety.items() if value is not None}
    try:
        if options.episodes < 1 or options.workers < 1:
            raise ValueError("--episodes and --workers must be at least 1")
        if options.output.suffix not in (".zarr", ".zip"):
            raise ValueError(f"--output must end in .zarr or .zip, got {options.output}")
        collector = load_collector(options.task)(**settings)
        attributes = {"source": "scripted expert", "task": options.task, **dataclasses.asdict(collector)}
        collect(collector, options.episodes, options.output, options.workers, attributes)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
