"""Read what strangers wrote, a checkpoint from the hub and its configuration, within bounds and without carrying
anything out."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unified_video_action.compat.checkpoint_files import LISTS, upgrade_config, verify
from unified_video_action.messages import shown

MOST_BYTES = 1_000_000
DEEPEST = 32  # levels of nesting; the deepest configuration of this project has 8
CONFIG = "config.yaml"
HUB = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
ON_HUB = (CONFIG, "normalizer.json", "instructions.json", "codec.safetensors", *LISTS)  # and weights


def on_hub(location: str | Path) -> bool:
    return str(location).startswith("hf:/")  # of the two slashes a Path keeps one


@cache
def local_checkpoint(location: str | Path, weights: str = "ema") -> Path:
    """The folder of a checkpoint: of hf://USER/NAME[@REVISION] the hub's cache, where its files are fetched to.

    Only files that a checkpoint has are fetched, of the weights those that will be read, "ema" or "model".

    Raises:
        ValueError: not such an address, or files that are not those that were written; the cache forgets them.
        OSError: the hub cannot be reached, or has no such repository or revision.
    """
    if not on_hub(location):
        return Path(location)
    if not (address := HUB.fullmatch(str(location))):
        raise ValueError(f"checkpoint {location}: expected hf://USER/NAME or hf://USER/NAME@REVISION")
    from huggingface_hub import snapshot_download

    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)  # they log every request
    patterns = [*ON_HUB, f"{weights}.safetensors", f"{weights}.safetensors.index.json", f"{weights}-*.safetensors"]
    try:
        folder = Path(snapshot_download(address[1], revision=address[2], allow_patterns=patterns))
    except Exception as error:  # of whichever HTTP client the hub's library has
        raise OSError(f"checkpoint {location} cannot be fetched ({' '.join(str(error).split())[:500]})") from error
    if not folder.is_dir():
        raise FileNotFoundError(f"checkpoint {location}: the repository has none of the files of a checkpoint")
    try:
        verify(folder, weights)
    except ValueError:
        for path in folder.iterdir():  # else the damaged files would be found again
            path.resolve().unlink(missing_ok=True)
            path.unlink()
        raise
    return folder


def read_checkpoint_config(folder: Path) -> dict[str, Any]:
    """The configuration that a checkpoint folder holds, under today's keys; nothing is resolved.

    Raises:
        FileNotFoundError: no such folder, or no config.yaml in it.
        ValueError: a file in place of a folder, or as `read_yaml`.
    """
    folder = local_checkpoint(folder)
    if folder.is_file():
        raise ValueError(
            f"checkpoint {folder} is a file; expected a folder with {CONFIG} and weights; one is "
            f"made of a .ckpt of the paper's code by: python scripts/convert_checkpoint.py {folder} FOLDER"
        )
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"checkpoint {folder}: {f'{CONFIG} is missing' if folder.is_dir() else 'no such folder'}"
        )
    return upgrade_config(read_yaml(folder / CONFIG))


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file that nobody vouches for.

    Raises:
        ValueError: it is larger than 1 MB, nested deeper than 32 levels, has aliases (which can grow without bound) or
            interpolations (which could read this machine's environment), or is not a mapping in YAML.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path} is larger than {MOST_BYTES:,} bytes; no configuration is")
    try:
        text, depth = data.decode(), 0
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if depth == 0 and isinstance(event, yaml.ScalarEvent | yaml.SequenceStartEvent):
                raise ValueError(f"{path} holds no mapping")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
                what = f"nested deeper than {DEEPEST} levels" if depth > DEEPEST else "an alias"
                raise ValueError(f"{path}: line {event.start_mark.line + 1}: {what}, which a checkpoint may not have")
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is not YAML: {shown(' '.join(str(error).split()), 500)}") from error
    for where, value in leaves(content):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{path}: {where}: {value[:200]!r} is an interpolation, which a checkpoint may not have")
    return content


def leaves(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every key and every value that is not a container, with its key."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield where, key
            yield from leaves(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, f"{where}[{index}]")
    else:
        yield where, node
