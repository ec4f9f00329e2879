"""Draw the frames of a low-dimensional robomimic file, and turn its relative actions into absolute ones.

python scripts/render_robomimic.py data/low_dim.hdf5 --output data/image_abs.hdf5 --absolute
"""

import logging
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from unified_video_action.demos.collecting import in_order
from unified_video_action.env.robomimic.demonstrations import new_file
from unified_video_action.env.robomimic.rendering import Renderer, read_arguments
from unified_video_action.workspace.commands import at_least, mistakes, script_parser

log = logging.getLogger("render_robomimic")
CAMERAS = {"ToolHang": ("sideview", "robot0_eye_in_hand")}  # of the published image files
OTHER_CAMERAS = ("agentview", "robot0_eye_in_hand")


def render(renderer: Renderer, output: Path, workers: int, count: int | None, require_success: bool) -> None:
    """Write `output`, which appears when all of it is there, and say which replays failed."""
    from unified_video_action.dataset.formats.hdf5 import Hdf5Store

    names = list(Hdf5Store(renderer.source, images=(), vectors=("actions",)).demos)[:count]
    failed = []
    with new_file(output, renderer.written_arguments) as writer:
        rendered = in_order(renderer, names, workers)
        for name, (demonstration, replayed) in tqdm(zip(names, rendered), total=len(names), unit="demo"):
            if replayed is False:
                failed.append(name)
            if replayed is not False or not require_success:
                writer.append(demonstration)
        kept = len(writer)
    log.info("%d demonstrations in %s", kept, output)
    if renderer.absolute:
        succeeded = len(names) - len(failed)
        log.info("replay of the absolute actions succeeded in %d of %d demonstrations", succeeded, len(names))
        if failed:
            log.info("%s: %s", "dropped" if require_success else "kept, though it failed", ", ".join(failed))


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__)
    parser.add_argument("source", type=Path, help="low_dim.hdf5 of robomimic: states, model_file and env_args")
    parser.add_argument("--output", type=Path, required=True, help="a new file NAME.hdf5")
    parser.add_argument("--cameras", nargs="+", help="default: ToolHang sideview, others agentview; and wrist")
    parser.add_argument("--image-size", type=at_least(8), default=240, help="pixels (default 240)")
    parser.add_argument("--samples", type=int, default=4, help="samples per pixel: 4 (smooth edges) or 0 (fast)")
    parser.add_argument("--absolute", action="store_true", help="turn relative actions into poses, and replay them")
    parser.add_argument("--require-success", action="store_true", help="drop demonstrations whose replay fails")
    parser.add_argument("--own-model", action="store_true", help="draw with robosuite's model, not the recorded ones")
    parser.add_argument("-n", "--count", type=at_least(1), help="convert only the first COUNT demonstrations")
    parser.add_argument("--workers", type=at_least(1), default=2, help="processes; the result does not depend on it")
    options = parser.parse_args(arguments)
    from unified_video_action.dataset.formats.hdf5 import Hdf5Store

    with mistakes(parser):
        if options.require_success and not options.absolute:
            raise ValueError("--require-success needs --absolute: only absolute actions are replayed")
        Hdf5Store(options.source, images=(), vectors=("actions", "obs/robot0_eef_pos", "states"))  # as it should be
        cameras = options.cameras or CAMERAS.get(read_arguments(options.source)["env_name"], OTHER_CAMERAS)
        drawing = tuple(cameras), options.image_size, options.samples
        with closing(Renderer(options.source, *drawing, options.absolute, options.own_model)) as renderer:
            render(renderer, options.output, options.workers, options.count, options.require_success)


if __name__ == "__main__":
    main()
