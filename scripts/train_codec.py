"""Fit the project's own frame codecs on scripted demonstrations, and measure them.

python scripts/collect_demos.py --task pusht -n 120 --output demos.zarr.zip
python scripts/collect_demos.py --task pusht -n 60 --seed 5 --goal random --output demos_m.zarr.zip
python scripts/train_codec.py --kind mlp --demos demos.zarr.zip demos_m.zarr.zip --output weights.safetensors
python scripts/train_codec.py --kind linear --demos demos.zarr.zip demos_m.zarr.zip --output weights.safetensors

`linear` (`vae=pusht_tiny`) are the principal components of all patches of all frames: a closed form, so the same
demonstrations give the same weights. `mlp` (`vae=pusht_mlp`) is trained for some minutes; a little noise on its latents
makes it spread what it keeps evenly over them. Every tenth frame is held out and measured; so are,
of PushT, the human demonstrations in the data folder, which are never fitted. Frames of any camera can be coded so:
`--camera`, then vae=pusht_tiny vae.weights=FILE. The figures go to a JSON file beside the weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from unified_video_action.files import data_folder, written
from unified_video_action.workspace.commands import script_parser

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("train_codec")
FRAMES_AT_A_TIME = 500


def images_of(location: str | Path, held_out: bool, most: int | None = None, camera: str = "img") -> Iterator[Tensor]:
    """Images (N, 3, S, S) of a store of episodes, in parts: every tenth frame if held out, else the others, and of them
    at most `most`, evenly spaced."""
    from unified_video_action.dataset.formats.zarr import ReplayBuffer
    from unified_video_action.vae.fitting import to_images

    store = ReplayBuffer(location, images=[camera], vectors=[])
    rows = np.arange(len(store))
    rows = rows[(rows % 10 == 0) == held_out]
    if most is not None and len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(int)]
    for start in tqdm(range(0, len(rows), FRAMES_AT_A_TIME), desc=Path(location).name, unit="part"):
        yield to_images(store.frames(camera, rows[start : start + FRAMES_AT_A_TIME]))


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--kind", choices=("linear", "mlp"), default="mlp", help="which codec (default: mlp)")
    add("--demos", type=Path, nargs="+", required=True, help="stores that collect_demos.py wrote")
    add("--output", type=Path, required=True, help="weights file, NAME.safetensors")
    add("--frames", type=int, help="at most so many of each store (default: all)")
    add("--camera", default="img", help="their frames (default: img; of hand-held recordings camera0_rgb)")
    add("--minutes", type=float, default=30.0, help="mlp: to train (default: 30)")
    add("--batch", type=int, default=512, help="mlp: patches of a step (default: 512)")
    add("--device", help="mlp: cpu or cuda (default: cuda where there is one)")
    options = parser.parse_args(arguments)
    import torch

    from unified_video_action.vae.fitting import fit_linear, fit_mlp, measure

    parts = (part for path in options.demos for part in images_of(path, False, options.frames, options.camera))
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    linear = options.kind == "linear"
    codec = fit_linear(parts) if linear else fit_mlp(parts, options.minutes, device, options.batch)
    with written(options.output) as partial:
        codec.save(partial)

    measured = {path.name: path for path in options.demos}
    human = data_folder() / "pusht" / "pusht.zip"
    if human.is_file() and options.camera == "img":
        measured["human"] = human
    elif options.camera == "img":
        log.info("Not measured on human demonstrations: there is no %s", human)
    figures = {
        name: measure(codec, torch.cat(list(images_of(path, True, 2000, options.camera))))
        for name, path in measured.items()
    }
    for name, values in figures.items():
        log.info("%s: %s", name, ", ".join(f"{key} {value:g}" for key, value in values.items()))
    options.output.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
