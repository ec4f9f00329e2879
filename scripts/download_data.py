"""Fetch public demonstrations; an interrupted download goes on where it stopped.

python scripts/download_data.py pusht                 # to $UVA_DATA_DIR/pusht/pusht.zip, or ./data without it
python scripts/download_data.py pusht --output data
"""

import logging
import os
import sys
from pathlib import Path

from unified_video_action.dataset.download import PUBLIC_FILES, download
from unified_video_action.workspace.commands import script_parser

log = logging.getLogger("download_data")


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__)
    parser.add_argument("name", choices=sorted(PUBLIC_FILES))
    parser.add_argument("--output", type=Path, help="data folder; by default $UVA_DATA_DIR, or ./data")
    parser.add_argument("--url", help="fetch from a mirror; the checksum stays the same")
    options = parser.parse_args(arguments)
    public = PUBLIC_FILES[options.name]
    folder = options.output or Path(os.environ.get("UVA_DATA_DIR") or "data")
    try:
        download(options.url or public.url, folder / public.path, public.sha256)
    except (OSError, ValueError) as error:
        log.error("error: %s", error)
        log.error("without a network, scripts/collect_demos.py --task %s makes demonstrations", options.name)
        return 1
    log.info("ready; set UVA_DATA_DIR=%s so that training finds it", folder.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
