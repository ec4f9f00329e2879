"""Per-dimension affine normalisation of actions and low-dimensional observations; it travels in the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

STATISTICS = ("min", "max", "mean", "std")
FLAT = 1e-4  # range below which a dimension counts as constant


class Normalizer(nn.Module):
    """y = x * scale + offset for each named field, over the last dimension.

    Args:
        fields: name -> {"scale": (D,), "offset": (D,)} and, where known, {"min", "max", "mean", "std"} of the data.
    """

    def __init__(self, fields: Mapping[str, Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.names = tuple(fields)
        self.stats: dict[str, dict[str, Tensor]] = {}
        for name, field in fields.items():
            if "." in name:
                raise ValueError(f"normaliser field {name!r}: a name may not contain a dot")
            scale, offset = _vector(name, "scale", field["scale"]), _vector(name, "offset", field["offset"])
            if scale.shape != offset.shape or not (torch.isfinite(scale).all() and torch.isfinite(offset).all()):
                raise ValueError(f"normaliser field {name!r}: scale {scale} and offset {offset} do not fit together")
            if (scale == 0).any():
                raise ValueError(f"normaliser field {name!r}: scale {scale} contains 0 and cannot be undone")
            self.register_buffer(f"{name}_scale", scale)
            self.register_buffer(f"{name}_offset", offset)
            self.stats[name] = {key: _vector(name, key, field[key]) for key in STATISTICS if key in field}

    @classmethod
    def limits(cls, data: Mapping[str, np.ndarray | Tensor]) -> Normalizer:
        """Fit the minimum and maximum of each field, name -> values (..., D), onto [-1, 1].

        A dimension that varies by less than FLAT is centred on 0 with scale 1.
        """
        fields = {}
        for name, values in data.items():
            stats, flat = _statistics(name, values)
            extent = torch.where(flat, 2.0, stats["max"] - stats["min"])
            scale = 2 / extent
            offset = torch.where(flat, -stats["min"], -1 - scale * stats["min"])
            fields[name] = {"scale": scale, "offset": offset, **stats}
        return cls(fields)

    @classmethod
    def deviations(cls, data: Mapping[str, np.ndarray | Tensor]) -> Normalizer:
        """Fit each field to mean 0 and standard deviation 1: for values with long tails. Data as for `limits`."""
        fields = {}
        for name, values in data.items():
            stats, flat = _statistics(name, values)
            scale = 1 / torch.where(flat, 1.0, stats["std"])
            fields[name] = {"scale": scale, "offset": -scale * stats["mean"], **stats}
        return cls(fields)

    @classmethod
    def identity(cls, dims: Mapping[str, int]) -> Normalizer:
        """Leave each field (name -> D) as it is."""
        return cls({name: {"scale": torch.ones(dim), "offset": torch.zeros(dim)} for name, dim in dims.items()})

    def fields(self) -> dict[str, dict[str, Tensor]]:
        """What the constructor takes."""
        return {
            name: {"scale": self.scale(name), "offset": self.offset(name), **self.stats[name]} for name in self.names
        }

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def scale(self, name: str) -> Tensor:
        """(D,); raises KeyError for an unknown field."""
        if name not in self.names:
            raise KeyError(f"the normaliser has no field {name!r}; it has {', '.join(self.names)}")
        return getattr(self, f"{name}_scale")

    def offset(self, name: str) -> Tensor:
        """(D,)"""
        return getattr(self, f"{name}_offset")

    def normalize(self, name: str, x: Tensor) -> Tensor:
        """Data units (..., D) -> about [-1, 1]."""
        return x * self.scale(name) + self.offset(name)

    def unnormalize(self, name: str, y: Tensor) -> Tensor:
        """Normalised (..., D) -> data units."""
        scale = self.scale(name)
        return (y - self.offset(name)) / scale

    def to_json(self) -> str:
        """The fields as JSON; float32 values survive the round trip exactly."""
        fields = {name: {k: v.tolist() for k, v in field.items()} for name, field in self.fields().items()}
        return json.dumps(fields, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Normalizer:
        """Inverse of `to_json`. Raises ValueError for text that is not a normaliser's JSON."""
        try:
            fields = {
                name: {key: torch.tensor(value) for key, value in field.items()}
                for name, field in json.loads(text).items()
            }
            assert all({"scale", "offset"} <= set(field) for field in fields.values())
        except (ValueError, AssertionError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                'a normaliser\'s JSON must map each field name to {"scale": [...], "offset": [...]} '
                f"({repr(error)[:200]})"
            ) from error
        return cls(fields)


def _vector(name: str, part: str, values: Tensor) -> Tensor:
    vector = torch.as_tensor(values).detach().to(torch.float32, copy=True)
    if vector.ndim != 1:
        raise ValueError(f"normaliser field {name!r}: {part} has shape {tuple(vector.shape)}, expected (D,)")
    return vector


def _statistics(name: str, values: np.ndarray | Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Statistics (D,) each, and which dimensions hardly vary (D,)."""
    rows = torch.as_tensor(values).to(torch.float32)
    rows = rows.reshape(-1, rows.shape[-1])  # (N, D)
    if not len(rows):
        raise ValueError(f"normaliser field {name!r}: no data to fit")
    if not torch.isfinite(rows).all():
        raise ValueError(f"normaliser field {name!r}: row {(~torch.isfinite(rows)).nonzero()[0, 0]} is not finite")
    exact = rows.to(torch.float64)
    mean, std = exact.mean(0).float(), exact.std(0, unbiased=False).float()
    stats = {"min": rows.amin(0), "max": rows.amax(0), "mean": mean, "std": std}
    return stats, stats["max"] - stats["min"] < FLAT
