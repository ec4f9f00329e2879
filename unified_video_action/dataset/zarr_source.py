"""Any store in Diffusion Policy's zarr layout as a source: the configuration says which array plays which part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from unified_video_action.dataset.mixture import Source, Wanted
from unified_video_action.dataset.replay_buffer import ReplayBuffer
from unified_video_action.dataset.tables import Table, check_weight
from unified_video_action.dataset.zarr_store import StoreError


@dataclass(frozen=True)
class ZarrSource(Source):
    """A store with data/<array> (N, ...) and meta/episode_ends (E,): folder, zip or fsspec URL.

    Arrays may be more than the task wants; those it does not want are not read. An entry of `low_dim` and `action` is
    an array's name, or `{array: NAME, columns: [...]}` for some of its columns, in that order.
    """

    path: str  # ~ and environment variables are expanded
    cameras: Mapping[str, str]  # the task's name of a camera -> array of frames (N, H, W, 3)
    low_dim: Mapping[str, str | Mapping] = field(default_factory=dict)  # the task's name -> array (N, D)
    action: str | Mapping | None = "action"  # array (N, D); None: a video to learn from
    weight: float | None = None  # share of the training samples, relative to the other sources'; None: by its size

    def __post_init__(self) -> None:
        check_weight(self.path, self.weight)
        for part in ("cameras", "low_dim"):
            if not isinstance(getattr(self, part), Mapping):
                raise ValueError(f"source {self.path}: {part}={getattr(self, part)!r} must map names to arrays")
        self._vectors()

    def tables(self, wanted: Wanted) -> list[Table]:
        for part, names in {"cameras": wanted.cameras, "low_dim": wanted.low_dim}.items():
            for name in names:
                if name not in getattr(self, part):
                    raise ValueError(
                        f"source {self.path}: task.shape_meta.obs has {name}, for which the source's {part} names no "
                        f"array; there are {', '.join(getattr(self, part)) or 'none'}"
                    )
        if wanted.auxiliary:
            raise ValueError(f"source {self.path}: has no auxiliary targets; set task.shape_meta.auxiliary_dim=0")
        chosen = {key: entry for key, entry in self._vectors().items() if key in (*wanted.low_dim, None)}
        store = ReplayBuffer(
            self.path,
            images=list(dict.fromkeys(self.cameras[name] for name in wanted.cameras)),
            vectors=list(dict.fromkeys(array for array, _ in chosen.values())),
        )
        values = {key: _columns(store, *entry) for key, entry in chosen.items()}
        action = values.pop(None, None)
        if action is not None and action.shape[1] != wanted.action_dim:
            raise StoreError(
                f"{store.location}: actions of {action.shape[1]} numbers, task.shape_meta.action has "
                f"{wanted.action_dim}"
            )
        return [
            Table(
                store=store,
                cameras={name: self.cameras[name] for name in wanted.cameras},
                low_dim={name: values[name] for name in wanted.low_dim},
                action=action,
                weight=self.weight,
            )
        ]

    def _vectors(self) -> dict[str | None, tuple[str, tuple[int, ...] | None]]:
        """Low-dim name, or None for the action -> (array, columns); no columns means all."""
        entries = dict(self.low_dim) | ({} if self.action is None else {None: self.action})
        return {name: self._parse(name or "action", entry) for name, entry in entries.items()}

    def _parse(self, name: str, entry: str | Mapping) -> tuple[str, tuple[int, ...] | None]:
        if isinstance(entry, str):
            return entry, None
        if isinstance(entry, Mapping) and set(entry) == {"array", "columns"} and isinstance(entry["array"], str):
            columns = entry["columns"]
            if columns and all(isinstance(column, int) and column >= 0 for column in columns):
                return entry["array"], tuple(columns)
        raise ValueError(
            f"source {self.path}: {name}={entry!r} must be an array's name or {{array: NAME, columns: [0, 1, ...]}}"
        )


def _columns(store: ReplayBuffer, array: str, columns: tuple[int, ...] | None) -> np.ndarray:
    values = store.vectors[array]
    if columns is None:
        return values
    if max(columns) >= values.shape[1]:
        raise StoreError(f"{store.location}: data/{array} has {values.shape[1]} columns, not number {max(columns)}")
    return values[:, list(columns)]
