"""Encode a data set's frames once, so that training never runs the frame codec.

python scripts/cache_latents.py --config-name uva_pusht_mini
python scripts/cache_latents.py --config-name uva_pusht data.n_views=4 --device cuda

Training builds the same caches on first use; this does it beforehand, on another machine or device. Interrupted, it
goes on where it stopped; --rebuild encodes everything again.
"""

import logging
import sys
import time

from unified_video_action.workspace.commands import read_config, script_parser

log = logging.getLogger("cache_latents")


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__)
    parser.add_argument("--config-name", required=True, help="configuration, as for train.py")
    parser.add_argument("--device", help="where to encode; cuda where there is one, else cpu")
    parser.add_argument("--rebuild", action="store_true", help="delete existing caches first")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    options = parser.parse_intermixed_args(arguments)

    import torch

    from unified_video_action.dataset.build import DataSettings, build_dataset
    from unified_video_action.instantiate import build_dataclass, instantiate
    from unified_video_action.vae.base import FrameCodec

    started = time.monotonic()
    try:
        config = read_config(options.config_name, options.overrides)
        settings = build_dataclass(DataSettings, config["data"], "data")
        codec = instantiate(config["vae"], FrameCodec, "vae")
        codec.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        build_dataset(config).latents(codec, settings.cache_dir, settings.n_views, options.rebuild)
    except (OSError, ValueError) as error:
        log.error("error: %s", error)
        return 1
    log.info("the latents of all frames are ready after %.0f s", time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
