"""Fetch public data and weights by name; an interrupted download goes on where it stopped.

python scripts/download.py list                  what there is: size, licence, where it goes and what uses it
python scripts/download.py pusht kl16            to $UVA_DATA_DIR, or data without it
python scripts/download.py pusht --output FOLDER
"""

import logging
import sys
from pathlib import Path

from unified_video_action.downloads import Public, download, public_files
from unified_video_action.files import data_folder
from unified_video_action.workspace.commands import script_parser

log = logging.getLogger("download")


def describe(name: str, public: Public) -> str:
    facts = [public.size or "size unknown", f"licence {public.licence or 'not stated, see the page'}"]
    facts += ["checked by sha256" if public.sha256 else "no published checksum"]
    lines = [f"{name}: {public.use}", ", ".join(facts), f"{public.path}, from {public.page}"]
    return "\n    ".join([*lines, *([f"then: {public.then}"] if public.then else [])])


def main(arguments: list[str] | None = None) -> int:
    parser = script_parser(__doc__)
    names = ["list", *public_files()]
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--output", type=Path, default=data_folder(), help="data folder (default: %(default)s)")
    parser.add_argument("--url", help="fetch from a mirror; the checksum stays the same")
    options = parser.parse_args(arguments)
    if options.url and len(options.names) > 1:
        parser.error("--url is of one NAME")
    if "list" in options.names:
        log.info("\n".join(describe(*entry) for entry in public_files().items()))
        return 0
    for name in options.names:
        public = public_files()[name]
        path = options.output / public.path
        try:
            download(options.url or public.address, path, public.sha256)
        except (OSError, ValueError) as error:
            log.error("error: %s\nBy hand: see %s, and put the file at %s", error, public.page, path)
            if name == "pusht":
                log.error("Without a network: scripts/collect_demos.py --task pusht makes demonstrations.")
            return 1
        log.info("%s: %s", name, path)
        if public.then:
            log.info("then: %s", public.then.replace("FILE", str(path)))
    if options.output.resolve() != data_folder().resolve():
        log.info("set UVA_DATA_DIR=%s so that training finds it", options.output.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
