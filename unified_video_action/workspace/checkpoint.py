"""Checkpoint folders: written whole or not at all, without pickle.

A folder `step_00001000` is written under a temporary name, flushed to disk and renamed, so a crash leaves the last good
one. `trainer_state.json` is written last and lists size and checksum of every other file; a folder that disagrees with
its list (a truncated copy, a full disk, a bit that has flipped) is not taken for a checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unified_video_action.compat.checkpoint_files import fault, listed, read_json, upgrade_tensors
from unified_video_action.compat.tensors import (
    read_safetensors,
    require_finite,
    require_same,
    shapes_of,
    weights_exist,
    write_safetensors,
)
from unified_video_action.files import written
from unified_video_action.messages import few

logger = logging.getLogger(__name__)
STATE, SCORES = "trainer_state.json", "scores.json"
SMALL = 1 << 20  # bytes; checksums of smaller files are always looked at


def write_checkpoint(
    root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str], state: Mapping
) -> Path:
    """Write `<root>/step_<step>` and point `<root>/latest` at it.

    Args:
        tensors: file name -> tensors by name. texts: file name -> content. state: what trainer_state.json holds.
    """
    final = root / f"step_{step:08d}"
    with written_whole(final) as temporary:  # in place of a damaged one, else the run would have continued from it
        for name, group in tensors.items():
            write_safetensors(temporary / name, group)
        for name, content in texts.items():
            (temporary / name).write_text(content)
        (temporary / STATE).write_text(json.dumps({**state, "step": step, "files": listed(temporary)}, indent=1))
    _point(root / "latest", final.name)
    _flush(root)
    return final


@contextmanager
def written_whole(final: Path) -> Iterator[Path]:
    """An empty folder; if the block succeeds, it is flushed to disk and takes the place of `final`."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    replaced = final.with_name(f".{final.name}.{os.getpid()}.replaced.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        if final.exists():
            os.rename(final, replaced)
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if replaced.exists():
        shutil.rmtree(replaced)
    _flush(final.parent)


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; of large files only the sizes are checked. Others are warned of."""
    return [path for path in _folders(root) if not _damage(path, SMALL)]


def newest(root: Path) -> Path | None:
    """The newest checkpoint whose every file is as it was written; None where there is none at all.

    Raises:
        ValueError: there are checkpoints, and all of them are damaged.
    """
    damages = []
    for path in reversed(_folders(root)):
        if not (damage := _damage(path)):
            return path
        damages.append(f"{path.name}: {damage}")
    if damages:
        raise ValueError(
            f"no checkpoint in {root} can be read: {few(damages)}. "
            "Restore one of them from a copy; or, to start again, remove them or choose another output_dir"
        )
    return None


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def read_state(folder: Path) -> dict[str, Any]:
    return read_json(folder / STATE)


def remove_unfinished(root: Path) -> None:
    """Delete what was being written or deleted when a run was killed."""
    for path in root.glob(".step_*.tmp"):
        logger.info("Removing what is left of the checkpoint %s", path)
        shutil.rmtree(path)


def record_score(root: Path, step: int, score: float) -> None:
    """Note the score of the checkpoint of a step, for `prune`."""
    with written(root / SCORES) as partial:
        partial.write_text(json.dumps(_scores(root) | {step: score}, indent=1))
        _flush(partial)


def prune(root: Path, keep: int, mode: str) -> None:
    """Keep the newest checkpoint and the `keep` best ones by score, `best` pointing at the first of them.

    mode: max or min, which scores are better. Checkpoints without a score go once they are not the newest.
    """
    folders = {step_of(path): path for path in checkpoints(root)}
    scores = {step: score for step, score in _scores(root).items() if step in folders}
    sign = 1 if mode == "max" else -1
    ranked = sorted(scores, key=lambda step: (sign * scores[step], step), reverse=True)[:keep]
    if ranked:
        _point(root / "best", folders[ranked[0]].name)
    for step in folders.keys() - {max(folders, default=0), *ranked}:
        removed = root / f".{folders[step].name}.{os.getpid()}.removed.tmp"  # whole or gone, also after a kill
        os.rename(folders[step], removed)
        shutil.rmtree(removed)


def load_initial_weights(module: nn.Module, file: Path, allow_missing: tuple[str, ...] = ()) -> list[str]:
    """Load a safetensors file, or its pieces, into a module for a new run (not to resume one).

    Returns:
        the tensors that the file lacks, all of which begin with an entry of `allow_missing`; they keep their values.

    Raises:
        FileNotFoundError: no such file. ValueError: tensors missing, extra, misshapen or not finite.
    """
    if not weights_exist(file):
        raise FileNotFoundError(
            f"init_from: no weights at {file}. Give the folder of a checkpoint, or init_from=null to train from scratch"
        )
    given, wanted = upgrade_tensors(read_safetensors(file)), shapes_of(module.state_dict())
    absent = [name for name in wanted if name not in given and name.startswith(allow_missing)]
    needed = {name: shape for name, shape in wanted.items() if name not in absent}
    source = f"init_from: {file} (init_allow_missing=[PREFIX,...] initialises missing tensors)"
    require_same(needed, shapes_of(given), source)
    require_finite(given, str(file))
    module.load_state_dict({**module.state_dict(), **given})
    return absent


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name))


def _damage(folder: Path, most: int | None = None) -> str | None:
    """What is wrong with a checkpoint, which is warned of; None for a good one. See `fault` for `most`."""
    try:
        found = fault(folder, read_state(folder)["files"], most)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        found = f"{STATE} cannot be read ({repr(error)[:300]})"
    if found:
        logger.warning("Skipping the checkpoint %s: %s", folder, found)
    return found


def _scores(root: Path) -> dict[int, float]:
    path = root / SCORES
    return {int(step): score for step, score in read_json(path).items()} if path.exists() else {}


def _point(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target, target_is_directory=True)
    os.replace(temporary, link)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
