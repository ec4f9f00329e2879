"""Collect demonstrations from a task's scripted expert, in the layout of the published PushT archive.

python scripts/collect_demos.py --task pusht -n 200 --output data/demos.zarr.zip
python scripts/collect_demos.py --task pusht_m -n 300 --output data/pusht_m/scripted.zarr.zip
python scripts/collect_demos.py --task pusht --help            the options of that task's expert
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import itertools
import logging
import pkgutil
import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from unified_video_action import env as environments
from unified_video_action.dataset.demonstrations import new_store, require_new_store
from unified_video_action.env.collecting import in_order

log = logging.getLogger("collect_demos")


def collect(collector: Callable, count: int, output: Path, workers: int, attributes: dict) -> None:
    """Write the first `count` successful episodes to `output`, which appears only when all of them are there.

    Raises FileExistsError when `output` exists, and RuntimeError when the expert hardly ever succeeds.
    """
    measures = []
    with new_store(output) as store:
        episodes = in_order(collector, itertools.count(), workers)
        with contextlib.closing(episodes), tqdm(total=count, unit="episode", desc="collecting") as bar:
            for attempts, episode in enumerate(episodes, start=1):
                if episode.success:
                    store.append(episode.arrays, episode.meta)
                    measures.append(episode.measures)
                    bar.update()
                elif attempts - store.episodes > 20 + count:
                    raise RuntimeError(f"the expert succeeded in only {store.episodes} of {attempts} attempts")
                if store.episodes == count:
                    break
        store.describe(**attributes)
    means = "".join(f", mean {name} {np.mean([each[name] for each in measures]):.3f}" for name in measures[0])
    log.info("%d episodes, %d steps, in %s", count, store.rows, output)
    log.info("success %d of %d attempts (%.1f %%)%s", count, attempts, 100 * count / attempts, means)


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


def add_options(parser: argparse.ArgumentParser, collector: type) -> None:
    """An option for every field of a task's collector."""
    hints = typing.get_type_hints(collector)
    for field in filter(lambda field: field.init, dataclasses.fields(collector)):
        kind = next((each for each in typing.get_args(hints[field.name]) if each is not type(None)), hints[field.name])
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        text = f"{field.metadata.get('help', '')} (default %(default)s)"
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, help=text, **how)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    parser.add_argument("--task", help="environment whose expert plays")
    task = parser.parse_known_args(arguments)[0].task
    parser.add_argument("-h", "--help", action="help", help="show this, with --task also the options of its expert")
    parser.add_argument("-n", "--episodes", type=int, default=200, help="successful episodes to collect (default 200)")
    parser.add_argument("--output", type=Path, required=True, help="a new folder NAME.zarr or file NAME.zarr.zip")
    parser.add_argument("--workers", type=int, default=2, help="processes; the result does not depend on it")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        collector = load_collector(task) if task is not None else None
        if collector is not None:
            add_options(parser, collector)
        options = parser.parse_args(arguments)
        if collector is None:
            parser.error("the following arguments are required: --task")
        if options.episodes < 1 or options.workers < 1:
            raise ValueError("--episodes and --workers must be at least 1")
        require_new_store(options.output)
        names = [field.name for field in dataclasses.fields(collector) if field.init]
        made = collector(**{name: getattr(options, name) for name in names})
        attributes = {"source": "scripted expert", "task": task, **dataclasses.asdict(made)}
        collect(made, options.episodes, options.output, options.workers, attributes)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
