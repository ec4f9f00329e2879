"""What a dataset knows of a store: its numbers in memory, and how its frames are to be read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unified_video_action.dataset.sequence import WindowOptions, clamp_rows
from unified_video_action.dataset.store import EpisodeStore, StoreError
from unified_video_action.dataset.transforms import WindowStates, rows_between


@dataclass(frozen=True)
class Table:
    """One store, or its mirror image, with a number of rows N."""

    store: EpisodeStore
    cameras: Mapping[str, str]  # camera -> the store's name for it
    low_dim: Mapping[str, np.ndarray]  # name -> (N, d); empty: a video without states
    action: np.ndarray | None = None  # (N, D); None: a video without actions
    auxiliary: np.ndarray | None = None  # (N, K) regression targets, about [-1, 1]
    instructions: tuple[str, ...] | None = None  # one for each episode, or for each row; None: the task has none
    weight: float | None = None  # share of the training samples; None: by its size; `MixtureDataset` says so
    val_ratio: float | None = None  # its source's; None: the data set's; `MixtureDataset` says so
    mirror: Callable[[np.ndarray], np.ndarray] | None = None  # stored frames (..., 3, H, W) -> this table's frames
    executed: np.ndarray | None = None  # (N, D) actions as carried out; None: as recorded in `action`

    def __len__(self) -> int:
        return len(self.store)

    def stored(self, camera: str) -> tuple[str, str]:
        """The store's location, and its name for a camera."""
        return self.store.location, self.cameras[camera]

    def stored_frames(self, camera: str, rows: np.ndarray) -> np.ndarray:
        """Frames as stored: uint8 (*rows.shape, 3, H, W)."""
        return np.moveaxis(self.store.frames(self.cameras[camera], rows), -1, -3)

    def mirrored(self, frames: np.ndarray) -> np.ndarray:
        """Stored frames as this table shows them."""
        return frames if self.mirror is None else self.mirror(frames)


def fingerprints(tables: Sequence[Table]) -> list[dict[str, str]]:
    """What each table holds: `store`, its location, and `sha256` of all that samples are made of, frames included.

    Two lists are of equal data if their hashes are the same, wherever the stores lie.
    """
    frames = {id(table.store): table.store.fingerprint() for table in tables}
    found = []
    for table in tables:
        digest = hashlib.sha256(frames[id(table.store)].encode() + table.store.episode_ends.tobytes())
        digest.update(repr((table.cameras, table.instructions, table.mirror is None)).encode())
        arrays = {**table.low_dim, "action": table.action, "auxiliary": table.auxiliary}
        arrays |= {} if table.executed is None else {"executed": table.executed}
        for name, values in arrays.items():
            digest.update(name.encode())
            if values is not None:
                digest.update(np.ascontiguousarray(values, np.float32))
        found.append({"store": table.store.location, "sha256": digest.hexdigest()})
    return found


def stored_cameras(tables: Sequence[Table]) -> Iterator[tuple[tuple[str, str], str, list[tuple[Table, str]]]]:
    """Each camera of each store, as `Table.stored` says it; the name of its cache; tables with the task's name for it.

    A cache is named after the stored camera: a task may call it otherwise the next time. Where a store has no other
    one in use, its fingerprint says which it is, and the cache has the task's name.
    """
    groups: dict[str, dict[str, list[tuple[Table, str]]]] = {}
    for table in tables:
        for camera, stored in table.cameras.items():
            groups.setdefault(table.store.location, {}).setdefault(stored, []).append((table, camera))
    for location, cameras in groups.items():
        for stored, shown in cameras.items():
            yield (location, stored), shown[0][1] if len(cameras) == 1 else stored.replace("/", "."), shown


class Recordings:
    """States and actions of all rows N of several tables, one table after the other, read by windows.

    Attributes:
        first: (tables,) row at which each of them begins.
        has_action, has_low_dim, has_auxiliary: (tables,) bool.
        low_dim: name -> (N, d); auxiliary: (N, K) or None; all float32, zeros where a table has none.
    """

    def __init__(self, tables: Sequence[Table], action_dim: int, options: WindowOptions) -> None:
        self.options, self._tables = options, tuple(tables)
        for table in tables:
            if table.action is not None and table.action.shape[1] != action_dim:
                raise StoreError(
                    f"{table.store.location}: actions of {table.action.shape[1]} numbers, but "
                    f"task.shape_meta.action has {action_dim}"
                )

        def joined(parts: Sequence[np.ndarray | None], width: int) -> np.ndarray:
            filled = [
                np.zeros((len(table), width), np.float32) if part is None else part
                for part, table in zip(parts, tables, strict=True)
            ]
            return np.concatenate(filled).astype(np.float32)

        self.first = np.cumsum([0, *map(len, tables[:-1])])
        self.has_action = np.array([table.action is not None for table in tables])
        self.has_low_dim = np.array([bool(table.low_dim) for table in tables])
        self.has_auxiliary = np.array([table.auxiliary is not None for table in tables])
        whole = tables[int(self.has_low_dim.argmax())]  # the first that has states, if any
        self.low_dim = {
            name: joined([table.low_dim.get(name) for table in tables], values.shape[1])
            for name, values in whole.low_dim.items()
        }
        targets = [table.auxiliary for table in tables]
        known = next((values for values in targets if values is not None), None)
        self.auxiliary = None if known is None else joined(targets, known.shape[1])
        self._action = joined([table.action for table in tables], action_dim)
        self._poses = frozenset().union(*(transform.poses for transform in options.transforms))
        done = [table.action if table.executed is None else table.executed for table in tables]
        self._executed = joined(done, action_dim) if any(table.executed is not None for table in tables) else None
        if self._executed is not None and options.transforms:
            raise ValueError("executed actions are read as they are, but the data's transforms would change them")
        for name in options.latency:
            if name not in {*self.low_dim, "action"}:
                raise ValueError(f"latency.{name}: there is no such state; there are {', '.join(self.low_dim)}, action")

    def states(
        self,
        now: np.ndarray,
        start: np.ndarray,
        end: np.ndarray,
        seeds: np.ndarray,
        history_offsets: np.ndarray,
        training: bool,
    ) -> WindowStates:
        """What windows `now` (B,) of episodes [start, end) hold besides frames, transformed.

        `history_offsets` are (H,) or (B, H) steps; transforms may draw something if `training`.
        """
        options, horizon = self.options, self.options.horizon

        def at(steps: Sequence[int] | np.ndarray, late_as: str) -> tuple[np.ndarray, np.ndarray]:
            """Rows at which something is read, integers unless they lie between rows, and which are padding."""
            late = options.latency.get(late_as, 0)
            offsets = options.down_sample * np.array(steps) + (int(late) if late == int(late) else late)
            return clamp_rows(now, start, end, offsets)

        def states(steps: Sequence[int] | np.ndarray, late_as: str | None = None) -> dict[str, np.ndarray]:
            """name -> (B, n, d), each with its own latency unless it is read as late as another."""
            return {
                name: rows_between(values, at(steps, late_as or name)[0], name in self._poses)
                for name, values in self.low_dim.items()
            }

        past = horizon.history_action_offsets if options.history_actions else None
        whole = bool(options.transforms)  # which may need all of it
        action_rows, action_is_pad = at(horizon.action_offsets, "action")
        found = WindowStates(
            history=states(history_offsets[..., -(options.low_dim_steps or horizon.history) :]),
            now=states([0]) if whole else {},
            future=states(horizon.action_offsets) if whole or options.future_low_dim else {},
            targets=states(horizon.action_offsets, "action") if whole else {},
            past_targets=states(past, "action") if whole and past else {},
            action=rows_between(self._action, action_rows),
            executed=None if self._executed is None else rows_between(self._executed, action_rows),
            history_action=rows_between(self._action, at(past, "action")[0]) if past else None,
            action_is_pad=action_is_pad,
            seeds=seeds,
            training=training,
        )
        for transform in options.transforms:
            found = transform(found)
        return found

    def sample(self, most: int) -> tuple[np.ndarray, WindowStates]:
        """Tables (n,) and states of windows at up to `most` rows, evenly spread, history at its fixed times."""
        starts = np.concatenate([first + table.store.episode_starts for first, table in zip(self.first, self._tables)])
        ends = np.concatenate([first + table.store.episode_ends for first, table in zip(self.first, self._tables)])
        count = min(most, int(ends[-1]))
        now = np.arange(count) * int(ends[-1]) // count
        episode = np.searchsorted(ends, now, side="right")
        fixed = np.array(self.options.horizon.history_offsets)
        states = self.states(now, starts[episode], ends[episode], np.zeros(count, np.int64), fixed, training=False)
        return np.searchsorted(self.first, now, side="right") - 1, states


def repeats(windows: list[int], weights: list[float | None]) -> list[float]:
    """How often the windows of each source must occur for shares of the given weights, or None; at least once each."""
    if all(weight is None for weight in weights) or not any(windows):
        return [1.0] * len(windows)
    if any(weight is None for weight in weights):
        raise ValueError(f"weights {weights}: give a weight to every source, or to none")
    wanted = [weight / max(count, 1) for weight, count in zip(weights, windows, strict=True)]
    lowest = min(share for share, count in zip(wanted, windows, strict=True) if count)
    return [share / lowest for share in wanted]
