"""Reading, comparing and loading named tensors, with errors that list every difference.

Weights are one safetensors file, or pieces of it as Hugging Face writes them: `ema-00001-of-00003.safetensors` and so
on, and `ema.safetensors.index.json`, which says what is where.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def require_same(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise ValueError listing every tensor of `source` that is missing, extra or misshapen."""
    wrong = [f"missing: {name} {tuple(shape)}" for name, shape in expected.items() if name not in given]
    wrong += [f"extra: {name} {tuple(shape)}" for name, shape in given.items() if name not in expected]
    wrong += [
        f"misshapen: {name} is {tuple(given[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in given and tuple(given[name]) != tuple(shape)
    ]
    if wrong:
        raise ValueError(f"{source}: {len(wrong)} tensors do not fit\n  " + "\n  ".join(wrong))


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `module`, whose precision stays; ValueError lists every missing, extra or misshapen tensor."""
    require_same(shapes_of(module.state_dict()), shapes_of(state), source)
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
    if index.is_file():
        return _read_pieces(index)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return _read_file(path)


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
    if most_bytes is None or sum(map(_stored_bytes, tensors.items())) <= most_bytes:
        save_file(tensors, path, metadata={"format": "pt"})
        return [path]
    from huggingface_hub import split_torch_state_dict_into_shards

    room = most_bytes - sum(_header_bytes(name) for name in tensors)  # no piece's header is longer than that of all
    for name, tensor in tensors.items():
        if tensor.nbytes > room:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} has {tensor.nbytes} bytes: no piece of {most_bytes} holds it"
            )
    pattern = path.stem + "{suffix}" + path.suffix
    split = split_torch_state_dict_into_shards(tensors, filename_pattern=pattern, max_shard_size=room)
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


def _header_bytes(name: str) -> int:
    """More than a tensor's entry in a safetensors header takes."""
    return 200 + len(name)


def _stored_bytes(entry: tuple[str, Tensor]) -> int:
    return _header_bytes(entry[0]) + entry[1].nbytes


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def _read_pieces(index: Path) -> dict[str, Tensor]:
    try:
        content = json.loads(index.read_text())
        places, size = dict(content["weight_map"]), int(content["metadata"]["total_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is no index of safetensors pieces: {error!r}") from error
    pieces = sorted(set(places.values()))
    for piece in pieces:
        if Path(piece).name != piece:
            raise ValueError(f"{index} names a piece outside its folder: {piece}")
        if not (index.parent / piece).is_file():
            raise FileNotFoundError(
                f"{index.parent / piece} is missing: one of the {len(pieces)} pieces of {index.name}"
            )
    stem = index.name.removesuffix(".safetensors.index.json")
    if stray := {path.name for path in index.parent.glob(f"{stem}-*-of-*.safetensors")} - set(pieces):
        raise ValueError(f"{index} does not name {', '.join(sorted(stray))}; remove what is out of date")
    tensors: dict[str, Tensor] = {}
    for piece in pieces:
        found = _read_file(index.parent / piece)
        wanted = {name for name, place in places.items() if place == piece}
        wrong = [f"missing: {name}" for name in sorted(wanted - found.keys())]
        wrong += [f"extra: {name}" for name in sorted(found.keys() - wanted)]
        if wrong:
            raise ValueError(f"{index.parent / piece} is not what {index.name} says\n  " + "\n  ".join(wrong))
        tensors |= found
    if (total := sum(tensor.nbytes for tensor in tensors.values())) != size:
        raise ValueError(f"{index}: total_size is {size}, but the pieces hold {total} bytes")
    return tensors
