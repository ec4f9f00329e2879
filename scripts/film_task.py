"""A short video of a task: some of its demonstrations, or the starts of its simulator's episodes.

    python scripts/film_task.py --config-name uva_pusht_m --episodes 3 --output pusht_m.webp
    python scripts/film_task.py --config-name uva_libero10 --starts --episodes 10 --output libero10.webp

All cameras are shown side by side. Hydra overrides may follow: task.dataset.sources.path=data/lift.hdf5
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unified_video_action.workspace.commands import read_config

log = logging.getLogger("film_task")
FORMATS = (".webp", ".gif", ".png")
START_S = 1.0  # for which a start is shown


def cameras_of(config: dict[str, Any]) -> list[str]:
    return [name for name, entry in config["task"]["shape_meta"]["obs"].items() if entry["type"] == "rgb"]


def demonstrations(config: dict[str, Any], episodes: int, every: int) -> Iterator[np.ndarray]:
    """Every `every`-th frame of the first episodes: uint8 (H, W, 3), the cameras side by side."""
    from unified_video_action.dataset.build import build_dataset

    table = build_dataset(config).tables[0]
    store = table.store
    for start, end in zip(store.episode_starts[:episodes], store.episode_ends[:episodes], strict=True):
        rows = np.arange(start, end, every)
        views = [np.moveaxis(table.stored_frames(camera, rows), 1, -1) for camera in cameras_of(config)]  # (T, H, W, 3)
        yield from np.concatenate(views, axis=2)


def starts(config: dict[str, Any], episodes: int) -> Iterator[np.ndarray]:
    """What the simulator shows first, for the first seeds of an evaluation."""
    from unified_video_action.env_runner.simulators import build_env

    if not config["task"].get("env"):
        raise ValueError("the configuration has no simulator: task.env is not set")
    env = build_env(config["task"]["env"])
    try:
        for seed in range(episodes):
            observation, _ = env.reset(seed=config["task"]["env_runner"]["start_seed"] + seed)
            yield np.concatenate([observation[camera] for camera in cameras_of(config)], axis=1)
    finally:
        env.close()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-name", required=True, help="a configuration of config/")
    parser.add_argument("--output", type=Path, required=True, help=f"a file that ends in {', '.join(FORMATS)}")
    parser.add_argument("--starts", action="store_true", help="starts of the simulator instead of demonstrations")
    parser.add_argument("--episodes", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--every", type=int, default=2, help="of the demonstrations' frames one in so many (default 2)")
    parser.add_argument("--fps", type=float, default=10.0, help="of the video (default 10)")
    parser.add_argument("--height", type=int, default=160, help="pixels (default 160)")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.output.suffix not in FORMATS:
            raise ValueError(f"--output {options.output}: expected a name that ends in {', '.join(FORMATS)}")
        if min(options.episodes, options.every, options.height) < 1 or options.fps <= 0:
            raise ValueError("--episodes, --every and --height must be at least 1, --fps above 0")
        config = read_config(options.config_name, options.overrides)
        if options.starts:
            frames, seconds = starts(config, options.episodes), START_S
        else:
            frames, seconds = demonstrations(config, options.episodes, options.every), 1 / options.fps
        pictures = [Image.fromarray(frame) for frame in frames]
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    width = round(pictures[0].width * options.height / pictures[0].height)
    pictures = [picture.resize((width, options.height), Image.Resampling.LANCZOS) for picture in pictures]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(
        options.output, save_all=True, append_images=pictures[1:], duration=round(1000 * seconds), loop=0, quality=70
    )
    log.info("%d frames, %d kB, in %s", len(pictures), options.output.stat().st_size // 1000, options.output)


if __name__ == "__main__":
    main()
