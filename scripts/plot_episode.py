"""Look at a recorded episode: a video, a grid of its frames, and a plot of commanded and measured poses.

python scripts/plot_episode.py outputs/real/*.zarr.zip --output outputs/look
python scripts/plot_episode.py --recover outputs/real                  finish recordings that a crash has left there

Draws of NAME.zarr.zip NAME.mp4, NAME.grid.png and NAME.plot.png.
"""

import logging
from pathlib import Path

from unified_video_action.real.robots.archive import ENDING, UNFINISHED, UNFIT, Recording, finish_recording
from unified_video_action.workspace.commands import mistakes, script_parser

log = logging.getLogger("plot_episode")


def look(path: Path, output: Path) -> list[Path]:
    """Draw one episode; returns the files, those of frames only where there are any."""
    from unified_video_action.env_runner.videos import write_mp4
    from unified_video_action.real.robots.episode_plot import frame_grid, plot_poses, video_frames

    recording = Recording.open(path)
    name = path.name.removesuffix(UNFIT).removesuffix(ENDING)
    output.mkdir(parents=True, exist_ok=True)
    files = [output / f"{name}.plot.png"]
    plot_poses(recording).savefig(files[0], dpi=100)
    if len(recording.row_time):
        files += [output / f"{name}.grid.png", output / f"{name}.mp4"]
        frame_grid(recording).savefig(files[1], dpi=100)
        write_mp4(files[2], video_frames(recording), max(round(recording.rate), 1))
    return files


def recover(folder: Path) -> list[Path]:
    """Finish every recording in a folder; those that are still going on, or have an archive, are left alone.

    Raises ValueError when there is none.
    """
    found = sorted(folder.glob(f"*{UNFINISHED}"))
    if not found:
        raise ValueError(f"{folder}: no unfinished recording (*{UNFINISHED}) here")
    finished = []
    for recording in found:
        try:
            finished.append(finish_recording(recording))
        except (ValueError, FileExistsError) as error:
            log.warning("%s", error)
    return finished


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__)
    parser.add_argument("episodes", nargs="*", type=Path, metavar="EPISODE.zarr.zip")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder of the pictures (default: here)")
    parser.add_argument("--recover", type=Path, metavar="FOLDER", help="finish what a crash left in this folder first")
    options = parser.parse_args(arguments)
    if not options.episodes and options.recover is None:
        parser.error("name episodes, or give --recover FOLDER")
    with mistakes(parser):
        for path in [] if options.recover is None else recover(options.recover):
            log.info("finished %s", path)
        for path in options.episodes:
            log.info("%s", "\n".join(map(str, look(path, options.output))))


if __name__ == "__main__":
    main()
