"""Collect demonstrations of Lift from its scripted expert, in robomimic's HDF5 format.

python scripts/collect_lift.py -n 100 --output data/lift.hdf5
"""

import argparse
import contextlib
import itertools
import logging
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from unified_video_action.env.robomimic.collect import Collector
from unified_video_action.env.robomimic.demonstrations import Demonstration, new_file
from unified_video_action.env.robomimic.lift_expert import Variety

log = logging.getLogger("collect_lift")


def in_order(collector: Collector, workers: int) -> Iterator[Demonstration | None]:
    """Attempts 0, 1, 2, ... in that order, without end, made by `workers` processes (1: by this one)."""
    if workers == 1:
        yield from map(collector, itertools.count())
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), adopt, (collector,)) as pool:
        running = deque()
        try:
            for attempt in itertools.count():
                running.append(pool.submit(collect_one, attempt))
                if len(running) > 2 * workers:
                    yield running.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def adopt(collector: Collector) -> None:
    """Keep the collector, and with it the simulator that it makes, for all episodes of this process."""
    collect_one.collector = collector


def collect_one(attempt: int) -> Demonstration | None:
    return collect_one.collector(attempt)


def collect(collector: Collector, count: int, output: Path, workers: int) -> None:
    """Write the first `count` successful episodes to `output`, which appears only when all of them are there.

    Raises FileExistsError when `output` exists, and RuntimeError when the expert hardly ever succeeds.
    """
    steps = attempts = 0
    with (
        new_file(output, collector.arguments) as (writer, _),
        contextlib.closing(in_order(collector, workers)) as episodes,
        tqdm(total=count, unit="episode", desc="collecting") as bar,
    ):
        while len(writer) < count:
            demonstration = next(episodes)
            attempts += 1
            if demonstration is not None:
                writer.append(demonstration)
                steps += len(demonstration.actions)
                bar.update()
            elif attempts - len(writer) > 20 + count:
                raise RuntimeError(f"the expert succeeded in only {len(writer)} of {attempts} attempts")
    share = 100 * count / attempts
    log.info("%d episodes, %d steps, in %s; %.1f %% of the attempts succeeded", count, steps, output, share)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--episodes", type=int, default=100, help="successful episodes to collect (default 100)")
    parser.add_argument("--output", type=Path, required=True, help="a new file NAME.hdf5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes; the result does not depend on it")
    parser.add_argument("--image-size", type=int, default=96, help="pixels (default 96)")
    parser.add_argument("--samples", type=int, default=0, help="of each pixel: 0 (fast) or 4 (smooth edges)")
    parser.add_argument("--low-dim", action="store_true", help="no frames: render_robomimic.py draws them later")
    parser.add_argument("--delta", action="store_true", help="actions as steps, which is how robomimic records them")
    parser.add_argument("--drift", type=float, default=Variety.drift, help="metres of slow drift of the targets")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.episodes < 1 or options.workers < 1:
            raise ValueError("--episodes and --workers must be at least 1")
        collector = Collector(
            seed=options.seed,
            image_size=0 if options.low_dim else options.image_size,
            samples=options.samples,
            delta=options.delta,
            variety=Variety(drift=options.drift),
        )
        collect(collector, options.episodes, options.output, options.workers)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
