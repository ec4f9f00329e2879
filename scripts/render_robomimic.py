"""Draw the frames of a low-dimensional robomimic file, and turn its relative actions into absolute ones.

python scripts/render_robomimic.py data/low_dim.hdf5 --output data/image_abs.hdf5 --absolute
"""

import argparse
import json
import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from unified_video_action.dataset.hdf5_store import Hdf5Store
from unified_video_action.env.robomimic.conversion import Converter
from unified_video_action.env.robomimic.demonstrations import (
    Demonstration,
    holds_steps,
    new_file,
    write_demonstration,
)
from unified_video_action.env.robomimic.simulator import with_controller

log = logging.getLogger("render_robomimic")
CAMERAS = {"ToolHang": ("sideview", "robot0_eye_in_hand")}  # of the published image files
OTHER_CAMERAS = ("agentview", "robot0_eye_in_hand")


@dataclass(frozen=True)
class Job:
    """What is done with each demonstration of a file."""

    source: Path
    cameras: tuple[str, ...]
    image_size: int
    samples: int
    absolute: bool
    own_model: bool

    def arguments(self) -> dict[str, Any]:
        """env_args of the source. Raises ValueError where there are none."""
        with h5py.File(self.source) as file:
            text = file["data"].attrs.get("env_args")
        if text is None:
            raise ValueError(f"{self.source}: data has no attribute env_args; it is no file of robomimic")
        return json.loads(text)

    def written_arguments(self) -> dict[str, Any]:
        """env_args of the output."""
        arguments = with_controller(self.arguments(), True) if self.absolute else self.arguments()
        sizes = {"camera_heights": self.image_size, "camera_widths": self.image_size}
        arguments["env_kwargs"] |= {"camera_names": list(self.cameras), **sizes, "use_camera_obs": True}
        return arguments


def adopt(job: Job) -> None:
    """Keep the simulators for all demonstrations of this process."""
    render_one.job, render_one.converter = job, Converter(job.arguments(), job.samples, job.own_model)


def render_one(name: str, part: Path) -> bool | None:
    """Write one demonstration to a file of its own; whether its replay succeeds, None where that is not asked."""
    job, converter = render_one.job, render_one.converter
    try:
        with h5py.File(job.source) as file:
            group = file["data"][name]
            demonstration = Demonstration(
                group.attrs["model_file"],
                group["states"][:],
                group["actions"][:].astype(np.float64),
                {"robot0_eef_pos": group["obs/robot0_eef_pos"][:]},
                group["rewards"][:] > 0,
            )
        replayed = None
        if job.absolute:
            if holds_steps(demonstration.actions, demonstration.obs["robot0_eef_pos"]):
                demonstration = converter.absolute(demonstration)
            replayed = converter.replay(demonstration)
        demonstration = converter.render(demonstration, job.cameras, job.image_size)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{job.source}: data/{name}: {error}; --own-model draws without the recorded model") from error
    with h5py.File(part, "w") as file:
        write_demonstration(file.create_group("demo"), demonstration)
    return replayed


def results(job: Job, names: list[str], folder: Path, workers: int) -> Iterator[tuple[str, Path, bool | None]]:
    """Each demonstration's name, file and replay, in order (1 worker: this process)."""
    parts = [folder / f"{name}.hdf5" for name in names]
    if workers == 1:
        adopt(job)
        for name, part in zip(names, parts, strict=True):
            yield name, part, render_one(name, part)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), adopt, (job,)) as pool:
        try:
            yield from zip(names, parts, pool.map(render_one, names, parts), strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def render(job: Job, output: Path, workers: int, count: int | None, require_success: bool) -> None:
    """Write `output`, which appears when all of it is there, and say which replays failed."""
    names = list(Hdf5Store(job.source, images=(), vectors=("actions",)).demos)[:count]
    failed = []
    with new_file(output, job.written_arguments()) as (writer, folder):
        done = results(job, names, folder, workers)
        for name, part, replayed in tqdm(done, total=len(names), unit="demo", desc="rendering"):
            if replayed is False:
                failed.append(name)
            if replayed is not False or not require_success:
                with h5py.File(part) as file:
                    writer.copy(file["demo"])
            part.unlink()
        kept = len(writer)
    log.info("%d demonstrations in %s", kept, output)
    if job.absolute:
        fate = "dropped" if require_success else "kept"
        log.info("replay succeeded in %d of %d; %s: %s", len(names) - len(failed), len(names), fate, failed or "none")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="low_dim.hdf5 of robomimic: states, model_file and env_args")
    parser.add_argument("--output", type=Path, required=True, help="a new file NAME.hdf5")
    parser.add_argument("--cameras", nargs="+", help="default: ToolHang sideview, others agentview; and wrist")
    parser.add_argument("--image-size", type=int, default=240, help="pixels (default 240)")
    parser.add_argument("--samples", type=int, default=4, help="of each pixel: 4 (smooth edges) or 0 (fast)")
    parser.add_argument("--absolute", action="store_true", help="turn relative actions into poses, and replay them")
    parser.add_argument("--require-success", action="store_true", help="drop demonstrations whose replay fails")
    parser.add_argument("--own-model", action="store_true", help="draw with robosuite's model, not the recorded ones")
    parser.add_argument("-n", "--count", type=int, help="only the first so many demonstrations")
    parser.add_argument("--workers", type=int, default=2, help="processes; the result does not depend on it")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.workers < 1 or options.image_size < 8 or (options.count is not None and options.count < 1):
            raise ValueError("--workers and --count must be at least 1, and --image-size at least 8")
        if options.require_success and not options.absolute:
            raise ValueError("--require-success needs --absolute: only absolute actions are replayed")
        settings = options.image_size, options.samples, options.absolute, options.own_model
        job = Job(options.source, (), *settings)
        Hdf5Store(options.source, images=(), vectors=("actions", "obs/robot0_eef_pos", "states"))
        cameras = options.cameras or CAMERAS.get(job.arguments()["env_name"], OTHER_CAMERAS)
        job = Job(options.source, tuple(cameras), *settings)
        render(job, options.output, options.workers, options.count, options.require_success)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
