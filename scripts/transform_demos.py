"""Make PushT-M demonstrations of PushT's human ones: move them over the table, and play them again there.

python scripts/transform_demos.py --output data/pusht_m/human.zarr.zip
python scripts/transform_demos.py --output data/pusht_m/human4.zarr.zip --copies 4 --seed 1 --workers 8

Every demonstration is turned, shifted and, half of the time, mirrored with its goal, by chance and as far as it stays
on the table. Its actions are played again in the simulator, and a copy whose best coverage is more than --tolerance
below the original's is dropped. The store has the layout of the published archive, and of every copy meta/goal (x, y,
angle), meta/source_episode and meta/motion (mirrored 0 or 1, angle, shift).
"""

import contextlib
import dataclasses
import itertools
import logging
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from unified_video_action.dataset.demonstrations import new_store, require_new_store
from unified_video_action.demos.collecting import in_order
from unified_video_action.env.pusht.env import DEFAULT_GOAL
from unified_video_action.env.pusht_m.motion import Mover, Recording
from unified_video_action.workspace.commands import at_least, mistakes, script_parser

log = logging.getLogger("transform_demos")


def recordings(source: str, most: int | None = None) -> list[Recording]:
    """The first episodes of a PushT store (None: all of them), with goals of their own where it has them."""
    from unified_video_action.dataset.formats.zarr_storage import open_array
    from unified_video_action.dataset.pusht import PushTSource, open_store

    store = open_store(PushTSource(source))
    states, actions = store.vectors["state"].astype(np.float64), store.vectors["action"]
    root = store.root()
    goals = open_array(root, "meta/goal", source)[:] if "meta/goal" in root else [DEFAULT_GOAL] * store.n_episodes
    spans = zip(store.episode_starts, store.episode_ends, goals, strict=True)
    given = (Recording(i, states[a:b], actions[a:b], tuple(goal)) for i, (a, b, goal) in enumerate(spans))
    return list(itertools.islice(given, most))


def transform(mover: Mover, given: list[Recording], output: Path, workers: int, attributes: dict) -> Counter:
    """Write what is kept of the recordings' copies to `output`, which appears when it is whole; how many had which end.

    Raises FileExistsError when `output` exists, and ValueError when nothing is kept.
    """
    outcomes: Counter[str] = Counter()
    measures = []
    with new_store(output) as store:
        results = in_order(mover, given, workers)
        with contextlib.closing(results), tqdm(total=len(given), unit="episode", desc="moving") as bar:
            for copies in results:
                for outcome, episode in copies:
                    outcomes[outcome] += 1
                    if episode is not None:
                        store.append(episode.arrays, episode.meta)
                        measures.append([episode.measures["coverage"], episode.measures["original"]])
                bar.update()
        counts = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
        if not store.episodes:
            raise ValueError(f"no copy of {len(given)} demonstrations can be kept: {counts}")
        store.describe(**attributes)
    log.info("%d demonstrations, %d steps, in %s", store.episodes, store.rows, output)
    log.info("of %d copies: %s", outcomes.total(), counts)
    log.info("mean of the best coverage: %.4f, of the originals: %.4f", *np.mean(measures, axis=0))
    return outcomes


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__)
    parser.add_argument(
        "--input", default="$UVA_DATA_DIR/pusht/pusht.zip", help="demonstrations of PushT (default %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder NAME.zarr or file NAME.zarr.zip")
    parser.add_argument(
        "--copies", type=int, default=Mover.copies, help="copies per demonstration (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=Mover.seed)
    parser.add_argument("--tolerance", type=float, default=Mover.tolerance, help="coverage (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=Mover.image_size, help="pixels (default %(default)s)")
    parser.add_argument("--episodes", type=at_least(1), help="use only the first EPISODES demonstrations")
    parser.add_argument("--workers", type=at_least(1), default=2, help="processes; the result does not depend on it")
    options = parser.parse_args(arguments)
    with mistakes(parser):
        require_new_store(options.output)
        mover = Mover(options.seed, options.copies, options.image_size, options.tolerance)
        given = recordings(options.input, options.episodes)
        attributes = {"source": "moved demonstrations", "task": "pusht_m", **dataclasses.asdict(mover)}
        transform(mover, given, options.output, options.workers, attributes)


if __name__ == "__main__":
    main()
