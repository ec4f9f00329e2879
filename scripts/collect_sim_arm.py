"""Collect demonstrations on the simulated arm from its scripted expert: the cup onto the saucer, in UMI's layout.

python scripts/collect_sim_arm.py -n 100 --output data/sim_arm
python scripts/collect_sim_arm.py -n 200 --measure                  only how often the expert succeeds

The output is a folder of archives, one for each episode, as a real arm's recorder leaves them; a dataset of UMI's
layout reads the folder as one. Everything follows from the seed, and nothing needs a screen.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
from tqdm import tqdm
from unified_video_action.demos.sim_arm.collect import Attempt, Collector

from unified_video_action.env.collecting import in_order

log = logging.getLogger("collect_sim_arm")


def collect(collector: Collector, count: int, first: int, workers: int) -> list[Attempt]:
    """Play seeds from `first` on until `count` episodes have succeeded (measuring: `count` seeds); return all attempts.

    Raises RuntimeError when the expert hardly ever succeeds.
    """
    attempts: list[Attempt] = []
    with tqdm(total=count, unit="episode", desc="collecting") as bar:
        while (missing := count - bar.n) > 0:
            seeds = range(first + len(attempts), first + len(attempts) + missing)
            for attempt in in_order(collector, seeds, workers):
                attempts.append(attempt)
                bar.update(attempt.success or collector.folder is None)
            if len(attempts) - bar.n > 20 + count:
                raise RuntimeError(f"the expert succeeded in only {bar.n} of {len(attempts)} attempts")
    return attempts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--episodes", type=int, default=100, help="successful episodes to collect (default 100)")
    parser.add_argument("--output", type=Path, help="a new folder")
    parser.add_argument("--measure", action="store_true", help="play -n seeds without recording")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--workers", type=int, default=2, help="processes; the result does not depend on it")
    parser.add_argument("--cameras", nargs="+", choices=("wrist", "side"), default=["wrist"], help="(default wrist)")
    parser.add_argument("--size", type=int, default=224, help="of frames, pixels (default 224)")
    parser.add_argument("--rate", type=float, default=20.0, help="frames and rows per second (default 20)")
    parser.add_argument("--drift", type=float, default=0.003, help="metres of slow drift of the hand (default 0.003)")
    parser.add_argument("--codec", choices=("jpeg", "jpegxl"), default="jpeg", help="of frames (default jpeg)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.episodes < 1 or options.workers < 1:
        parser.error("--episodes and --workers must be at least 1")
    if (options.output is None) != options.measure:
        parser.error("give either --output or --measure")
    try:
        if options.output is not None:
            options.output.mkdir(parents=True)
        collector = Collector(
            options.output, tuple(options.cameras), options.size, options.rate, options.drift, options.codec
        )
        attempts = collect(collector, options.episodes, options.seed, options.workers)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    good = [attempt for attempt in attempts if attempt.success]
    log.info("success %d of %d attempts (%.1f %%)", len(good), len(attempts), 100 * len(good) / len(attempts))
    seconds, lag = np.mean([[attempt.seconds, attempt.lag] for attempt in good or attempts], axis=0)
    log.info("%.1f s an episode; the hand is %.1f mm behind where it is sent, on average", seconds, 1000 * lag)


if __name__ == "__main__":
    main()
