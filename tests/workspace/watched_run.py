"""A run in a process of its own that notes what it encodes and writes."""

import json
import os
import sys
from pathlib import Path

from unified_video_action.vae.patch_mlp import PatchMLP
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace


def watched_run(config, notes: Path) -> None:
    """Train; leave `<notes>_<rank>.json`."""
    written: set[str] = set()
    encoded, encode = [], PatchMLP.encode_images

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = os.path.abspath(arguments[0])
            if path.startswith(str(notes.parent)):
                written.add(os.path.relpath(path, notes.parent))

    def count(codec, images):
        encoded.append(len(images))
        return encode(codec, images)

    sys.addaudithook(watch)
    PatchMLP.encode_images = count
    TrainUnifiedVideoActionWorkspace(config).run()
    found = {"encoded": sum(encoded), "written": sorted(written)}
    notes.with_name(f"{notes.name}_{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
