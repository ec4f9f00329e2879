"""Make LIBERO's published demonstrations into ones with absolute actions, by playing them again.

python scripts/replay_libero.py data/libero_10 --output data/libero_10_absolute
python scripts/replay_libero.py data/libero_10 --output data/libero_10_absolute --image-size 256 --workers 8

The published actions are steps. Each is turned into the pose that LIBERO's controller made of it, and the poses are
played from the recorded start; frames are drawn again, upright, from both cameras, and show what is seen before each
action. A demonstration whose replay does not solve the task is dropped and reported. A task's file appears when it is
whole; files that are there already are not made again, so an interrupted run goes on where it stopped. report.json in
the output folder says of every file what was kept and dropped. Each worker needs about 2 GB of memory.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from unified_video_action.env.libero.installation import cache_folder, find_assets
from unified_video_action.files import written
from unified_video_action.workspace.commands import at_least, mistakes, script_parser

if TYPE_CHECKING:
    from unified_video_action.env.libero.scene import Scene

log = logging.getLogger("replay_libero")
CHUNK = 8  # frames that are compressed together


@dataclass(frozen=True)
class Settings:
    """What decides the contents of a file; kept in it."""

    image_size: int
    keep_failures: bool  # also keep demonstrations whose replay does not solve the task
    demonstrations: int | None  # only so many of each file


@dataclass(frozen=True)
class Outcome:
    """What became of a file."""

    file: str
    kept: int
    unsolved: list[str]  # demonstrations whose replay did not solve the task
    steps: int
    error: str | None = None


def convert(source: Path, target: Path, settings: Settings, assets: Path, cache: Path) -> Outcome:
    """Write `target`, whole or not at all, from a published file; its faults are in the outcome and cost only it."""
    from unified_video_action.env.libero.replay import recorded_task
    from unified_video_action.env.libero.scene import Scene

    try:
        with written(target) as unfinished:
            with closing(Scene(recorded_task(source), assets, cache)) as scene, h5py.File(unfinished, "w") as file:
                unsolved = write(file.create_group("data"), source, scene, settings)
            outcome = outcome_of(unfinished, target.name)
            if not outcome.kept:
                raise ValueError(f"{source}: none of its {len(unsolved)} replays solved the task; nothing was written")
        return outcome
    except (ValueError, OSError, np.linalg.LinAlgError) as error:
        return Outcome(target.name, 0, [], 0, str(error))


def write(data: h5py.Group, source: Path, scene: Scene, settings: Settings) -> list[str]:
    """Write what is kept into the group `data`; names of the demonstrations that were not solved."""
    from unified_video_action.dataset.formats.hdf5 import CONTROL, INSTRUCTION
    from unified_video_action.env.libero.replay import absolute_actions, play, read_recording, recorded_names

    unsolved, total = [], 0
    for name in recorded_names(source)[: settings.demonstrations]:
        recording = read_recording(source, name, scene)
        actions = absolute_actions(scene, recording)
        seen, solved = play(scene, recording, actions, settings.image_size)
        log.info("%s %s: %d steps, %s", source.name, name, len(actions), "solved" if solved else "not solved")
        if not solved:
            unsolved.append(name)
            if not settings.keep_failures:
                continue
        group = data.create_group(name)
        group.create_dataset("actions", data=actions)
        for key, values in seen.items():
            chunks = {"chunks": (min(CHUNK, len(values)), *values.shape[1:]), "compression": "gzip"}
            group.create_dataset(f"obs/{key}", data=values, **(chunks if values.ndim == 4 else {}))
        group.attrs.update({"num_samples": len(actions), "solved": solved, "init_state": recording.states[0]})
        total += len(actions)
    about = {CONTROL: "absolute", INSTRUCTION: scene.task.instruction, "task": scene.task.name, "total": total}
    data.attrs.update({**about, "settings": json.dumps(asdict(settings)), "unsolved": json.dumps(unsolved)})
    return unsolved


def outcome_of(path: Path, name: str) -> Outcome:
    """Read from a file that is whole."""
    with h5py.File(path, "r") as file:
        data = file["data"]
        return Outcome(name, len(data), json.loads(data.attrs["unsolved"]), int(data.attrs["total"]))


def convert_all(
    sources: list[Path], output: Path, settings: Settings, assets: Path, cache: Path, workers: int
) -> list[Outcome]:
    """Convert every file that is not there yet; the outcomes of all.

    Raises:
        ValueError: a file that is there was made with other settings.
    """
    from unified_video_action.env_runner.results import write_json

    output.mkdir(parents=True, exist_ok=True)
    outcomes, jobs = [], []
    for source in sources:
        target = output / source.name
        if not target.exists():
            jobs.append((source, target))
            continue
        with h5py.File(target, "r") as file:
            made = json.loads(file["data"].attrs.get("settings", "{}"))
        if made != asdict(settings):
            remedy = "remove it, or take another --output"
            raise ValueError(f"{target} was made with {made}, not {asdict(settings)}; {remedy}")
        log.info("%s is there already", target)
        outcomes.append(outcome_of(target, target.name))
    job = partial(convert, settings=settings, assets=assets, cache=cache)
    context = multiprocessing.get_context("spawn")
    started = partial(script_parser, None)  # each process logs
    with ProcessPoolExecutor(min(workers, max(1, len(jobs))), context, started, max_tasks_per_child=1) as pool:
        outcomes += pool.map(job, *zip(*jobs)) if jobs else []
    outcomes.sort(key=lambda outcome: outcome.file)
    write_json(output / "report.json", list(map(asdict, outcomes)))
    return outcomes


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("input", help="folder of published .hdf5 files, or one of them")
    add("--output", type=Path, required=True, help="folder of the files to make")
    add("--image-size", type=at_least(8), default=128, help="pixels (default %(default)s)")
    add("--demonstrations", type=at_least(1), help="convert only the first DEMONSTRATIONS of each file")
    add("--keep-failures", action="store_true", help="also keep what does not solve the task")
    add("--assets", help="LIBERO's meshes and textures: see task.env.assets")
    add("--cache-dir", help="where an archive of them is unpacked: see task.env.cache_dir")
    add("--workers", type=at_least(1), default=2, help="processes, each at one file; default %(default)s")
    options = parser.parse_args(arguments)
    from unified_video_action.dataset.formats.hdf5 import libero_files

    with mistakes(parser):
        sources = libero_files(options.input)
        if options.output.resolve() == sources[0].parent.resolve():
            raise ValueError(f"--output {options.output} is the folder of the published files; choose another")
        settings = Settings(options.image_size, options.keep_failures, options.demonstrations)
        cache = cache_folder(options.cache_dir)
        assets = find_assets(options.assets, cache)
        outcomes = convert_all(sources, options.output, settings, assets, cache, options.workers)
    for outcome in outcomes:
        kept = f"{outcome.kept} kept, {outcome.steps} steps, {len(outcome.unsolved)} not solved {outcome.unsolved}"
        log.info("%s: %s", outcome.file, outcome.error or kept)
    if any(outcome.error for outcome in outcomes):
        sys.exit("some files could not be converted, see above; those that could are there, and are kept")


if __name__ == "__main__":
    main()
