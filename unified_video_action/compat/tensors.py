"""Comparing and loading named tensors, with errors that list every difference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
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
    """Copy `state` into `module`; raises ValueError listing every missing, extra or misshapen tensor."""
    require_same(shapes_of(module.state_dict()), shapes_of(state), source)
    module.load_state_dict(state, strict=True)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; a file that is damaged or of another kind raises ValueError naming it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
