"""Read what strangers wrote, a checkpoint's configuration, within bounds and without carrying anything out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unified_video_action.compat.old_checkpoints import upgrade_config
from unified_video_action.messages import shown

MOST_BYTES = 1_000_000
DEEPEST = 32  # levels of nesting; the deepest configuration of this project has 8
CONFIG = "config.yaml"


def read_checkpoint_config(folder: Path) -> dict[str, Any]:
    """The configuration that a checkpoint folder holds, under today's keys; nothing is resolved.

    Raises:
        FileNotFoundError: no such folder, or no config.yaml in it.
        ValueError: a file in place of a folder, or as `read_yaml`.
    """
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
            interpolations (which could read this machine's environment), or is no mapping in YAML.
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
        raise ValueError(f"{path} is no YAML: {shown(' '.join(str(error).split()), 500)}") from error
    for where, value in leaves(content):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{path}: {where}: {value[:200]!r} is an interpolation, which a checkpoint may not have")
    return content


def leaves(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every key and every value that is no container, with its place."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield where, key
            yield from leaves(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, f"{where}[{index}]")
    else:
        yield where, node
