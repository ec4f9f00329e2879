"""A run in a process of its own that notes what it encodes and writes: `python watched_run.py CONFIG NOTES`."""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    config, notes = map(Path, sys.argv[1:])
    written: set[str] = set()

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = os.path.abspath(arguments[0])
            if path.startswith(str(notes.parent)):
                written.add(os.path.relpath(path, notes.parent))

    sys.addaudithook(watch)

    from unified_video_action.vae.patch_mlp import PatchMLP
    from unified_video_action.workspace import run

    encoded = []
    encode = PatchMLP.encode_images

    def count(codec, images):
        encoded.append(len(images))
        return encode(codec, images)

    PatchMLP.encode_images = count
    run.main([str(config)])
    rank = os.environ.get("RANK", "0")
    told = {"encoded": sum(encoded), "written": sorted(written)}
    notes.with_name(f"{notes.name}_{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
