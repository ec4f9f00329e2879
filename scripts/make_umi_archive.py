"""Make a small synthetic recording of a hand-held gripper in UMI's published layout, for tests and first runs.

A camera moves over a textured table along random smooth paths, and every pose is known: what scripts that measure
predicted motion need. The same seed makes the same archive.

python scripts/make_umi_archive.py --output data/umi/synthetic.zarr.zip
python scripts/make_umi_archive.py --output held_out.zarr.zip --seed 1 -n 4
"""

import dataclasses
import logging
from pathlib import Path

from unified_video_action.dataset.demonstrations import require_new_store
from unified_video_action.dataset.formats.pictures import JpegCodec, JpegXlCodec
from unified_video_action.demos.umi_synthetic import CAMERAS, Scene, write_archive
from unified_video_action.files import expand
from unified_video_action.workspace.commands import at_least, mistakes, script_parser

log = logging.getLogger("make_umi_archive")
CODECS = {"jpegxl": JpegXlCodec, "jpeg": JpegCodec}


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--output", required=True, help="a new folder NAME.zarr or file NAME.zarr.zip")
    parser.add_argument("-n", "--episodes", type=at_least(1), default=20, help="(default %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--codec", choices=CODECS, default="jpegxl", help="codec of the frames (default %(default)s)")
    parser.add_argument("--workers", type=at_least(1), default=2, help="processes; the result does not depend on it")
    for field, text in {
        "image_size": "pixels of a frame's side",
        "fps": "rows per second",
        "seconds": "length of an episode",
        "field_of_view": "degrees across a frame",
        "speed": "of the gripper; 1: about 0.3 m/s",
        "tables": "different tables, which episodes take in turn; 0: each has its own",
        "turning": "radians by which the gripper tilts and turns, standard deviation",
        "light": "how much the light's colour differs over the table, 0 to 1: frames then tell places",
    }.items():
        option, default = f"--{field.replace('_', '-')}", getattr(Scene, field)
        parser.add_argument(option, type=type(default), default=default, help=f"{text} (default {default})")
    parser.add_argument("--camera", choices=CAMERAS, default=Scene.camera, help="(default %(default)s)")
    options = parser.parse_args(arguments)
    with mistakes(parser):
        output = Path(expand(options.output))
        require_new_store(output)
        scene = Scene(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Scene)})
        pictures = CODECS[options.codec]()
        rows = write_archive(output, scene, options.seed, options.episodes, pictures, options.workers, progress=True)
        log.info("%d episodes, %d rows at %g per second, in %s", options.episodes, rows, scene.fps, output)


if __name__ == "__main__":
    main()
