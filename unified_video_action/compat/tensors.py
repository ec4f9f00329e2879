"""Reading, comparing and loading named tensors, with errors that say what differs.

Weights are one safetensors file, or pieces of it as Hugging Face writes them: `ema-00001-of-00003.safetensors` and so
on, and `ema.safetensors.index.json`, which says what is where.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unified_video_action.compat.checkpoint_files import read_json
from unified_video_action.files import require_data
from unified_video_action.messages import few

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
NAMED = 4  # most of each kind of differences

Shapes = dict[str, tuple[int, ...]]


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def require_same(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise ValueError if tensors of `source` are missing, extra or misshapen: it counts them and names some."""
    wrong = {
        "missing": [f"{name} {tuple(shape)}" for name, shape in expected.items() if name not in given],
        "extra": [f"{name} {tuple(shape)}" for name, shape in given.items() if name not in expected],
        "misshapen": [
            f"{name} is {tuple(given[name])}, expected {tuple(shape)}"
            for name, shape in expected.items()
            if name in given and tuple(given[name]) != tuple(shape)
        ],
    }
    if not (count := sum(map(len, wrong.values()))):
        return
    lines = [f"{source}: {count} tensors do not fit"]
    for kind, found in wrong.items():
        lines += [f"{kind}: {each[:300]}" for each in found[:NAMED]]
        lines += [f"{kind}: {len(found) - NAMED} more"] if len(found) > NAMED else []
    raise ValueError("\n  ".join(lines))


def require_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError for the first tensor with a value that is not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (finite := torch.isfinite(tensor)).all():
            value = tensor[~finite][0].item()
            raise ValueError(
                f"{source}: {name} is not finite ({value}, one of {int((~finite).sum())} such values); "
                "nothing can be computed with it, so take another checkpoint"
            )


def unwrapped(state: Any, source: str) -> dict[str, Tensor]:
    """Named tensors without the parts of names that DDP, FSDP and torch.compile add, wherever they stand.

    Raises:
        ValueError: something else than named tensors, or two names that become one.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{source}: a {type(state).__name__}, expected tensors by name")
    if others := [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        raise ValueError(f"{source}: these are not named tensors: {few(others)}")
    found = {".".join(part for part in name.split(".") if part not in WRAPPERS): state[name] for name in state}
    if len(found) < len(state):
        raise ValueError(f"{source}: it holds tensors twice, with and without {', '.join(WRAPPERS)} in their names")
    return found


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `module`, whose precision stays.

    Raises:
        ValueError: tensors that are missing, extra or misshapen, or a value that is not finite.
    """
    require_same(shapes_of(module.state_dict()), shapes_of(state), source)
    require_finite(state, source)
    module.load_state_dict(state, strict=True)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of the pieces that `<path>.index.json` names when there is no such file.

    Raises:
        FileNotFoundError: neither file nor index, or a piece is missing.
        ValueError: damaged or of another kind; pieces that are not exactly what the index says; file and index both.
    """
    path = Path(path)
    index = index_of(path)
    if path.is_file() and index.is_file():
        raise ValueError(f"{path.parent} has both {path.name} and {index.name}; remove the one that is out of date")
    return _read_pieces(index) if index.is_file() else _read_file(path)


def weights_exist(path: Path) -> bool:
    """Whether `read_safetensors` has something to read."""
    return path.is_file() or index_of(path).is_file()


def index_of(path: Path) -> Path:
    """The index of a safetensors file that is stored in pieces."""
    return path.with_name(path.name + ".index.json")


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], most_bytes: int | None = None) -> list[Path]:
    """Write a safetensors file, or pieces of at most `most_bytes` and their index if it would be larger.

    Returns:
        the files written.

    Raises:
        ValueError: one tensor alone is larger than a piece may be.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = sum(200 + len(name) for name in tensors)  # bytes, more than a header takes; no piece has a longer one
    if most_bytes is None or header + sum(tensor.nbytes for tensor in tensors.values()) <= most_bytes:
        save_file(tensors, path, metadata={"format": "pt"})
        return [path]
    from huggingface_hub import split_torch_state_dict_into_shards

    most = most_bytes - header
    if large := [
        f"{name} {tuple(each.shape)} has {each.nbytes}" for name, each in tensors.items() if each.nbytes > most
    ]:
        raise ValueError(f"{large[0]} bytes: no piece of {most_bytes} holds it")
    pattern = path.stem + "{suffix}" + path.suffix
    split = split_torch_state_dict_into_shards(tensors, filename_pattern=pattern, max_shard_size=most)
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, path.with_name(file), metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
    index_of(path).write_text(json.dumps(index, indent=2) + "\n")
    return [*(path.with_name(file) for file in split.filename_to_tensors), index_of(path)]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A short name of these very values, read as float32, in whatever files and precision they are stored."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
        whole.update(f"{name} {tuple(value.shape)} ".encode() + value.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    require_data(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def _read_pieces(index: Path) -> dict[str, Tensor]:
    try:
        content = read_json(index)
        piece_of, size = dict(content["weight_map"]), int(content["metadata"]["total_size"])
        if not all(isinstance(piece, str) for piece in piece_of.values()):
            raise ValueError("weight_map must say the name of a file for every tensor")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{index} is not an index of safetensors pieces: {repr(error)[:300]}") from error
    pieces = sorted(set(piece_of.values()))
    for piece in pieces:
        if Path(piece).name != piece:
            raise ValueError(f"{index} names a piece outside its folder: {few([piece])}")
        if not (index.parent / piece).is_file():
            raise FileNotFoundError(f"{index.parent / piece} is missing: one of {len(pieces)} pieces of {index.name}")
    stem = index.name.removesuffix(".safetensors.index.json")
    if stray := {path.name for path in index.parent.glob(f"{stem}-*-of-*.safetensors")} - set(pieces):
        raise ValueError(f"{index} does not name {few(sorted(stray))}; remove what is out of date")
    tensors: dict[str, Tensor] = {}
    for piece in pieces:
        found, wanted = _read_file(index.parent / piece), {name for name, own in piece_of.items() if own == piece}
        if wrong := found.keys() ^ wanted:
            raise ValueError(f"{index.parent / piece} does not hold what {index.name} says: {few(sorted(wrong))}")
        tensors |= found
    if (total := sum(tensor.nbytes for tensor in tensors.values())) != size:
        raise ValueError(f"{index}: total_size is {size}, but the pieces hold {total} bytes")
    return tensors
