"""Collect demonstrations of Lift from its scripted expert, in robomimic's HDF5 format.

python scripts/collect_lift.py -n 100 --output data/lift.hdf5
"""

import argparse
import contextlib
import itertools
import logging
from pathlib import Path

from tqdm import tqdm
from unified_video_action.env.robomimic.lift_expert import Variety

from unified_video_action.env.collecting import in_order
from unified_video_action.env.robomimic.collect import Collector
from unified_video_action.env.robomimic.demonstrations import new_file

log = logging.getLogger("collect_lift")


def collect(collector: Collector, count: int, output: Path, workers: int) -> None:
    """Write the first `count` successful episodes to `output`, which appears only when all of them are there.

    Raises FileExistsError when `output` exists, and RuntimeError when the expert hardly ever succeeds.
    """
    steps = attempts = 0
    with (
        new_file(output, collector.arguments) as (writer, _),
        contextlib.closing(in_order(collector, itertools.count(), workers)) as episodes,
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
