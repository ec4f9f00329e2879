"""What the files of a LeRobotDataset v3 folder say: its features, its episodes and its numbers. No frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unified_video_action.dataset.zarr_store import StoreError

VERSION = "v3."
CONVERTER = "convert it with LeRobot's own script, convert_dataset_v21_to_v30"
PICTURES = ("video", "image")  # dtypes of features that are cameras
NUMBERS = ("float", "int", "uint", "bool")  # beginnings of dtypes that are numbers


@dataclass(frozen=True)
class Segments:
    """Where the episodes lie in a camera's videos."""

    files: tuple[Path, ...]  # of each episode
    begin: np.ndarray  # (E,) seconds at which its first frame is shown


@dataclass(frozen=True)
class Episodes:
    """The episodes in use, in their order."""

    numbers: np.ndarray  # (E,) episode_index
    lengths: np.ndarray  # (E,) frames
    files: tuple[Path, ...]  # parquet file of each
    videos: dict[str, Segments]  # by camera feature; those stored as pictures have none


class LeRobotFolder:
    """An opened folder: meta/info.json is read and checked.

    Raises:
        FileNotFoundError: no such folder, or no meta/info.json. StoreError: another version, or damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        path = root / "meta" / "info.json"
        if not path.is_file():
            what = "has no meta/info.json, so it is no LeRobotDataset" if root.is_dir() else "no such folder"
            raise FileNotFoundError(f"{root}: {what}")
        try:
            info: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise StoreError(f"{path}: not readable ({error})") from error
        version = str(info.get("codebase_version"))
        if not version.startswith(VERSION):
            raise StoreError(f"{path}: codebase_version is {version}, expected v3.0; {CONVERTER}")
        for key in ("fps", "features", "data_path"):
            if key not in info:
                raise StoreError(f"{path}: {key} is missing")
        self.info, self.features = info, info["features"]
        self.fps = float(info["fps"])

    def feature(self, key: str, kinds: Sequence[str], role: str) -> dict[str, Any]:
        """Description of a feature that is to be one of `kinds`, which are beginnings of dtypes."""
        fitting = [name for name, feature in self.features.items() if str(feature["dtype"]).startswith(tuple(kinds))]
        if key not in fitting:
            state = f"is {self.features[key]['dtype']}" if key in self.features else "is not there"
            raise StoreError(
                f"{self.root}: the feature {key!r}, which is to be {role}, {state}; features that can be it: "
                f"{', '.join(fitting) or 'none'}"
            )
        return self.features[key]

    def frame_size(self, key: str) -> tuple[int, int]:
        """(H, W) of a camera. Shapes are written channels first or last, whatever their names say."""
        feature = self.feature(key, PICTURES, "a camera")
        shape, facts = list(feature["shape"]), feature.get("info") or {}
        if facts.get("video.is_depth_map") or facts.get("is_depth_map") or len(shape) != 3 or 3 not in shape[::2]:
            raise StoreError(f"{self.root}: the camera {key!r} has shape {shape}; expected 3 colours, no depth")
        return tuple(shape[:2] if shape[2] == 3 else shape[1:])

    def episodes(self, cameras: Sequence[str], chosen: Sequence[int] | str | None) -> Episodes:
        """The index of all episodes, or of those `chosen`: numbers, or "start:stop"."""
        filmed = [key for key in cameras if self.features[key]["dtype"] == "video"]
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        stamps = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        columns += [f"videos/{key}/{name}" for key in filmed for name in stamps]
        index = self._index(columns)
        keep = self._choose(index["episode_index"], chosen)
        index = {name: values[keep] for name, values in index.items()}
        videos = {}
        for key in filmed:
            chunk, file, begin, end = (index[f"videos/{key}/{name}"] for name in stamps)
            self._check_segments(key, index["episode_index"], index["length"], begin, end)
            files = self._paths("video_path", chunk, file, video_key=key)
            videos[key] = Segments(files, begin.astype(float))
        files = self._paths("data_path", index["data/chunk_index"], index["data/file_index"])
        return Episodes(index["episode_index"], index["length"], files, videos)

    def rows(self, episodes: Episodes, columns: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """First row of each episode in its parquet file (E,), and columns over all rows: name -> (N, d).

        One file is read at a time.
        """
        first = np.empty(len(episodes.numbers), np.int64)
        parts: list[dict[str, np.ndarray]] = [{}] * len(first)
        places: dict[Path, list[int]] = {}
        for place, path in enumerate(episodes.files):
            places.setdefault(path, []).append(place)
        for path, own in places.items():
            table = read_columns(path, ["episode_index", "frame_index", *columns])
            owner, frame = (_numbers(table[name], path, name)[:, 0] for name in ("episode_index", "frame_index"))
            values = {name: _numbers(table[name], path, name) for name in columns}
            present = np.unique(owner, return_index=True, return_counts=True)
            where = {number: place for number, *place in zip(*map(np.ndarray.tolist, present), strict=True)}
            for place in own:
                number, length = int(episodes.numbers[place]), int(episodes.lengths[place])
                begin, rows = where.get(number, (0, 0))
                first[place] = begin
                mine = slice(begin, begin + length)
                in_order = np.array_equal(frame[mine], np.arange(length)) and (owner[mine] == number).all()
                if rows != length or not in_order:
                    raise StoreError(
                        f"{path}: episode {number} has {rows} rows; meta/episodes says {length}, one after the other "
                        "with frame_index from 0"
                    )
                parts[place] = {name: column[mine] for name, column in values.items()}
        return first, {name: np.concatenate([part[name] for part in parts]) for name in columns}

    def instructions(self, episodes: Episodes, tasks: np.ndarray) -> tuple[str, ...]:
        """The task string of each episode; `tasks` (N,) are the rows' task_index."""
        path = self.root / "meta" / "tasks.parquet"
        table = read_columns(path, None)
        texts = [field.name for field in table.schema if field.type in (pa.string(), pa.large_string())]
        if "task_index" not in table.column_names or len(texts) != 1:
            raise StoreError(f"{path}: has columns {table.column_names}, expected task_index and the task strings")
        known = dict(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True))
        found = []
        for number, own in zip(episodes.numbers, np.split(tasks, np.cumsum(episodes.lengths)[:-1]), strict=True):
            if len(set(own.tolist())) > 1 or int(own[0]) not in known:
                raise StoreError(
                    f"{self.root}: episode {number} has task_index {sorted(set(own.tolist()))}; expected one that "
                    f"{path.name} lists. Leave the episode out with `episodes`, or set use_tasks to false"
                )
            found.append(known[int(own[0])])
        return tuple(found)

    def _index(self, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of meta/episodes, sorted by episode."""
        paths = sorted((self.root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        if not paths:
            raise FileNotFoundError(f"{self.root}: meta/episodes/chunk-*/file-*.parquet is missing")
        tables = [read_columns(path, columns) for path in paths]
        index = {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in columns}
        order = np.argsort(index["episode_index"], kind="stable")
        index = {name: values[order] for name, values in index.items()}
        total = self.info.get("total_episodes", len(order))
        if total != len(order) or (np.diff(index["episode_index"]) < 1).any() or (index["length"] < 1).any():
            raise StoreError(
                f"{self.root}: meta/episodes lists {len(order)} episodes, some twice or empty, or not the {total} of "
                "meta/info.json; fetch the folder again"
            )
        return index

    def _choose(self, numbers: np.ndarray, chosen: Sequence[int] | str | None) -> np.ndarray:
        """Places in `numbers` of the episodes that are chosen."""
        if chosen is None:
            return np.arange(len(numbers))
        if isinstance(chosen, str):
            try:
                start, stop = (int(part) if part else None for part in chosen.split(":"))
            except ValueError:
                raise ValueError(f"{self.root}: episodes={chosen!r}; expected numbers, or 'start:stop'") from None
            keep = np.arange(len(numbers))[start:stop]
        else:
            strange = sorted(set(chosen) - set(numbers.tolist()))
            if strange or len(set(chosen)) < len(chosen):
                raise ValueError(
                    f"{self.root}: episodes={list(chosen)}: {strange or 'some'} are not there, or twice; there are "
                    f"{len(numbers)} from {numbers[0]}"
                )
            keep = np.searchsorted(numbers, np.sort(np.array(chosen, np.int64)))
        if not len(keep):
            raise ValueError(f"{self.root}: episodes={chosen!r} leaves none of {len(numbers)}")
        return keep

    def _check_segments(self, key: str, numbers: Any, lengths: Any, begin: Any, end: Any) -> None:
        """Videos last as long as their episodes: at least to the middle of the last frame, at most one frame more."""
        frames = (end - begin) * self.fps
        wrong = (frames < lengths - 0.5) | (frames > lengths + 1.5)
        if wrong.any():
            place = int(np.argmax(wrong))
            raise StoreError(
                f"{self.root}: episode {numbers[place]} has {lengths[place]} rows, but {frames[place]:.1f} frames of "
                f"{key} at {self.fps:g} fps (from_timestamp {begin[place]:.3f} to {end[place]:.3f} s)"
            )

    def _paths(self, template: str, chunks: np.ndarray, files: np.ndarray, **more: str) -> tuple[Path, ...]:
        """A path for each episode. All must exist."""
        try:
            pattern = self.info[template]
            paths = tuple(
                self.root / pattern.format(chunk_index=int(chunk), file_index=int(file), **more)
                for chunk, file in zip(chunks, files, strict=True)
            )
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            raise StoreError(f"{self.root}: meta/info.json has no usable {template} ({error!r})") from error
        for path in dict.fromkeys(paths):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: the file is missing, but meta/episodes has episodes in it")
        return paths


def read_columns(path: Path, columns: Sequence[str] | None) -> pa.Table:
    """Columns of a parquet file (None: all). Raises FileNotFoundError, or StoreError naming file and column."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns or () if name not in file.schema_arrow.names]
            if missing:
                raise StoreError(f"{path}: has no column {', '.join(missing)}; it has {file.schema_arrow.names}")
            return file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path}: not readable ({error}); it may be truncated, fetch it again") from error


def _numbers(column: pa.ChunkedArray, path: Path, name: str) -> np.ndarray:
    """A column of numbers or of equally long lists of numbers: (rows, d)."""
    array = column.combine_chunks()
    rows, flat = len(array), array
    if isinstance(array.type, pa.BaseExtensionType):
        array = flat = array.storage
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type) or pa.types.is_large_list(array.type):
        flat = array.flatten()
    try:
        values = flat.to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise StoreError(f"{path}: the column {name} is {array.type}, expected numbers or lists of numbers") from error
    if array.null_count or flat.null_count or values.dtype.kind not in "fiub" or len(values) % max(rows, 1):
        raise StoreError(
            f"{path}: the column {name} is {array.type} with {array.null_count + flat.null_count} missing values; "
            "expected numbers, equally many in every row"
        )
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values.reshape(rows, -1)).all(axis=1)))
        raise StoreError(f"{path}: the column {name} holds something that is not a number in row {row}")
    return values.reshape(rows, -1)
