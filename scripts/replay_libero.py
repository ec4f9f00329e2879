"""Make LIBERO's published demonstrations into ones with absolute actions, by playing them again.

python scripts/replay_libero.py data/libero_10 --output data/libero_10_absolute
python scripts/replay_libero.py data/libero_10 --output data/libero_10_absolute --image-size 256 --workers 8

The published actions are steps. Each is turned into the pose that LIBERO's controller made of it, and the poses are
played from the recorded start; frames are drawn anew, upright, from both cameras, and show what is seen before each
action. A demonstration whose replay does not solve the task is dropped and reported. A task's file appears when it is
whole; files that are there already are not made again, so an interrupted run goes on where it stopped. report.json in
the output folder says of every file what was kept and dropped. Each worker needs about 2 GB of memory.
"""

import argparse
import json
import logging
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

from unified_video_action.dataset.formats.hdf5 import CONTROL, INSTRUCTION, libero_files
from unified_video_action.env.libero.installation import cache_folder, find_assets
from unified_video_action.env.libero.replay import (
    absolute_actions,
    play,
    read_recording,
    recorded_names,
    recorded_task,
)
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
    """Write `target`, whole or not at all, from a published file.

    Raises:
        ValueError: not a published file of LIBERO, or no demonstration of it can be kept.
    """
    scene = Scene(recorded_task(source), assets, cache)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        with h5py.File(partial, "w") as file:
            unsolved = write(file.create_group("data"), source, scene, settings)
        outcome = outcome_of(partial, target.name)
        if not outcome.kept:
            raise ValueError(f"{source}: none of its {len(unsolved)} replays solved the task; nothing was written")
        partial.rename(target)
        return outcome
    finally:
        partial.unlink(missing_ok=True)
        scene.close()


def write(data: h5py.Group, source: Path, scene: Scene, settings: Settings) -> list[str]:
    """Write what is kept into the group `data`; names of the demonstrations that were not solved."""
    unsolved, total = [], 0
    names = recorded_names(source)[: settings.demonstrations]
    for name in names:
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
            chunks = (min(CHUNK, len(values)), *values.shape[1:]) if values.ndim == 4 else None
            compression = "gzip" if values.ndim == 4 else None
            group.create_dataset(f"obs/{key}", data=values, chunks=chunks, compression=compression)
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


def attempt(job: tuple[Path, Path, Settings, Path, Path]) -> Outcome:
    """`convert`, in a process of its own; a file's fault costs only that file."""
    try:
        return convert(*job)
    except (ValueError, OSError, np.linalg.LinAlgError) as error:
        return Outcome(job[1].name, 0, [], 0, str(error))


def check_settings(target: Path, settings: Settings) -> None:
    """Raise ValueError when a file that is there was made with other settings."""
    with h5py.File(target, "r") as file:
        made = json.loads(file["data"].attrs.get("settings", "{}"))
    if made != asdict(settings):
        raise ValueError(f"{target} was made with {made}, not {asdict(settings)}; remove it, or take another --output")


def convert_all(
    sources: list[Path], output: Path, settings: Settings, assets: Path, cache: Path, workers: int
) -> list[Outcome]:
    """Convert every file that is not there yet; the outcomes of all."""
    output.mkdir(parents=True, exist_ok=True)
    targets = {source: output / source.name for source in sources}
    there = [target for target in targets.values() if target.exists()]
    for target in there:
        check_settings(target, settings)
        log.info("%s is there already", target)
    outcomes = [outcome_of(target, target.name) for target in there]
    jobs = [(source, target, settings, assets, cache) for source, target in targets.items() if target not in there]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, max(1, len(jobs))), context, start_logging, max_tasks_per_child=1) as pool:
        outcomes += pool.map(attempt, jobs)
    outcomes.sort(key=lambda outcome: outcome.file)
    partial = output / f".report.{os.getpid()}.json"
    partial.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    partial.replace(output / "report.json")
    return outcomes


def start_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="folder of published .hdf5 files, or one of them")
    parser.add_argument("--output", type=Path, required=True, help="folder of the files to make")
    parser.add_argument("--image-size", type=int, default=128, help="pixels (default %(default)s)")
    parser.add_argument("--demonstrations", type=int, help="only the first so many of each file")
    parser.add_argument("--keep-failures", action="store_true", help="also keep what does not solve the task")
    parser.add_argument("--assets", help="LIBERO's meshes and textures: see task.env.assets")
    parser.add_argument("--cache-dir", help="where an archive of them is unpacked: see task.env.cache_dir")
    parser.add_argument("--workers", type=int, default=2, help="processes, each at one file; default %(default)s")
    options = parser.parse_args(arguments)
    start_logging()
    try:
        for name, value in (("workers", options.workers), ("demonstrations", options.demonstrations)):
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if options.image_size < 8:
            raise ValueError(f"--image-size must be at least 8, got {options.image_size}")
        sources = libero_files(options.input)
        if options.output.resolve() == sources[0].parent.resolve():
            raise ValueError(f"--output {options.output} is the folder of the published files; choose another")
        settings = Settings(options.image_size, options.keep_failures, options.demonstrations)
        cache = cache_folder(options.cache_dir)
        assets = find_assets(options.assets, cache)
        outcomes = convert_all(sources, options.output, settings, assets, cache, options.workers)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        parser.error(str(error))
    for outcome in outcomes:
        kept = f"{outcome.kept} kept, {outcome.steps} steps, {len(outcome.unsolved)} not solved {outcome.unsolved}"
        log.info("%s: %s", outcome.file, outcome.error or kept)
    if any(outcome.error for outcome in outcomes):
        sys.exit("some files could not be converted, see above; those that could are there, and are kept")


if __name__ == "__main__":
    main()
