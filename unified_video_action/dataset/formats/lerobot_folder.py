"""What the files of a LeRobotDataset v3 folder say: its features, its episodes and its numbers. No frames."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unified_video_action.dataset.formats.parquet import numbers_of, read_columns
from unified_video_action.dataset.store import StoreError
from unified_video_action.files import unreadable
from unified_video_action.messages import few

log = logging.getLogger(__name__)

CONVERTER = (
    "convert it with LeRobot: python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME --root=FOLDER "
    "--push-to-hub=false (lerobot 0.4 has it as lerobot.datasets.v30.convert_dataset_v21_to_v30)"
)
OLD_CONVERTER = (
    "first make it v2.1, with lerobot 0.3: python -m lerobot.datasets.v21.convert_dataset_v20_to_v21 --repo-id=NAME"
)
PANDAS_INDEX = "__index_level_0__"  # column of a pandas table's index that has no name
NUMBERS = ("float", "int", "uint", "bool")  # beginnings of dtypes that are numbers


@dataclass(frozen=True)
class Episodes:
    """The episodes in use, in their order."""

    numbers: np.ndarray  # (E,) episode_index
    lengths: np.ndarray  # (E,) frames
    files: tuple[Path, ...]  # parquet file of each
    # Camera feature -> its video of each episode, and the seconds (E,) at which they begin there; none for pictures.
    videos: dict[str, tuple[tuple[Path, ...], np.ndarray]]


class LeRobotFolder:
    """An opened folder: meta/info.json is read and checked."""

    def __init__(self, root: Path) -> None:
        self.root, path = root, root / "meta" / "info.json"
        if not path.is_file():
            what = "has no meta/info.json, so it is not a LeRobotDataset" if root.is_dir() else "no such folder"
            raise FileNotFoundError(f"{root}: {what}")
        try:
            self.info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = str(self.info.get("codebase_version"))
        except (ValueError, AttributeError) as error:
            raise StoreError(unreadable(path, "JSON file of a LeRobotDataset", error)) from error
        if not version.startswith("v3."):
            remedy = f"{OLD_CONVERTER}; then {CONVERTER}" if version.startswith("v2.0") else CONVERTER
            raise StoreError(f"{path}: codebase_version is {version}, expected v3.0; {remedy}")
        for key in ("fps", "features", "data_path"):
            if key not in self.info:
                raise StoreError(f"{path}: {key} is missing")
        self.features, self.fps = self.info["features"], float(self.info["fps"])

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
        feature = self.feature(key, ("video", "image"), "a camera")
        shape, facts = list(feature["shape"]), feature.get("info") or {}
        if facts.get("video.is_depth_map") or facts.get("is_depth_map") or len(shape) != 3 or 3 not in shape[::2]:
            raise StoreError(f"{self.root}: the camera {key!r} has shape {shape}; expected 3 colours, no depth")
        return tuple(shape[:2] if shape[2] == 3 else shape[1:])

    def episodes(self, cameras: Sequence[str], chosen: Sequence[int] | str | None) -> Episodes:
        """The index of all episodes, or of those `chosen`: numbers, or "start:stop"."""
        in_videos = [key for key in cameras if self.features[key]["dtype"] == "video"]
        stamps = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        index = self._index([*columns, *(f"videos/{key}/{name}" for key in in_videos for name in stamps)])
        keep = self._choose(index["episode_index"], chosen)
        index = {name: values[keep] for name, values in index.items()}
        numbers, lengths, *location = (index[name] for name in columns)
        numbers, lengths = numbers.astype(np.int64), lengths.astype(np.int64)
        videos = {}
        for key in in_videos:
            chunk, file, begin, end = (index[f"videos/{key}/{name}"] for name in stamps)
            files = self._paths(numbers, key, "video_path", chunk, file, begin, video_key=key)
            self._check_stretches(key, numbers, lengths, files, begin, end)
            videos[key] = files, begin
        return Episodes(numbers, lengths, self._paths(numbers, "data", "data_path", *location), videos)

    def rows(self, episodes: Episodes, columns: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """First row of each episode in its parquet file (E,), and columns over all rows: name -> (N, d)."""
        first, parts = np.empty(len(episodes.numbers), np.int64), [{}] * len(episodes.numbers)
        positions: dict[Path, list[int]] = {}
        for position, path in enumerate(episodes.files):
            positions.setdefault(path, []).append(position)
        for path, own in positions.items():
            table = read_columns(path, ["episode_index", "frame_index", *columns])
            values = {name: numbers_of(table[name], path, name) for name in table.column_names}
            owner, frame = values["episode_index"][:, 0], values["frame_index"][:, 0]
            order = np.argsort(owner, kind="stable")
            owner = owner[order]
            for position in own:
                number, length = int(episodes.numbers[position]), int(episodes.lengths[position])
                rows = order[slice(*np.searchsorted(owner, [number, number + 1]))]
                whole = len(rows) == length and rows[-1] - rows[0] == length - 1
                if not whole or not np.array_equal(frame[rows], np.arange(length)):
                    raise StoreError(
                        f"{path}: episode {number} has {len(rows)} rows; meta/episodes says {length}, one after the "
                        "other with frame_index from 0"
                    )
                first[position] = rows[0]
                parts[position] = {name: values[name][rows] for name in columns}
        return first, {name: np.concatenate([part[name] for part in parts]) for name in columns}

    def instructions(self, episodes: Episodes, tasks: np.ndarray) -> tuple[str, ...]:
        """The task string of each episode, or of each row if a task (N,) changes within an episode."""
        known = self._tasks()
        owner = np.repeat(episodes.numbers, episodes.lengths)  # (N,)
        unknown = ~np.isin(tasks, list(known))
        if unknown.any():
            row = int(np.argmax(unknown))
            raise StoreError(
                f"{self.root}: episode {owner[row]} has task_index {tasks[row]}, for which meta/tasks.parquet has no "
                "text; choose the other episodes with `episodes`, or set use_tasks to false"
            )
        first = tasks[np.cumsum(episodes.lengths) - episodes.lengths]
        changes = tasks != np.repeat(first, episodes.lengths)
        if changes.any():
            several = few(dict.fromkeys(owner[changes]))
            log.info("%s: the task changes within episode %s: each row has its own", self.root, several)
        return tuple(known[task] for task in (tasks if changes.any() else first).tolist())

    def _tasks(self) -> dict[int, str]:
        """task_index -> text."""
        path = self.root / "meta" / "tasks.parquet"
        if not path.is_file() and path.with_suffix(".jsonl").is_file():
            raise FileNotFoundError(
                f"{path}: is missing, and tasks.jsonl beside it is of LeRobot v2, so the folder is half converted; "
                f"take the v2.1 folder again and {CONVERTER}"
            )
        table = read_columns(path, None)
        texts = [field.name for field in table.schema if _is_text(field.type)]
        named = [name for name in ("task", PANDAS_INDEX) if name in texts]
        if "task_index" not in table.column_names or not (named or len(texts) == 1):
            raise StoreError(
                f"{path}: has columns {few(table.column_names)}; expected task_index, and the texts as task, as the "
                "table's index, or as the only column of text"
            )
        known = dict(zip(table["task_index"].to_pylist(), table[(named or texts)[0]].to_pylist(), strict=True))
        if len(known) < len(table):
            raise StoreError(f"{path}: lists a task_index twice; give every task its own")
        return {number: text for number, text in known.items() if text is not None}

    def _index(self, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of meta/episodes, sorted by episode: (E,) float64, NaN where there is no entry."""
        paths = sorted((self.root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        if not paths:
            raise FileNotFoundError(f"{self.root}: meta/episodes/chunk-*/file-*.parquet is missing")
        schema = pa.schema([(name, pa.float64()) for name in columns])
        try:
            table = pa.concat_tables([read_columns(path, columns).select(columns).cast(schema) for path in paths])
        except pa.ArrowException as error:
            raise StoreError(f"{paths[0].parent}: one of {few(columns)} is not of numbers ({error})") from error
        order = np.argsort(table["episode_index"].to_numpy(), kind="stable")
        index = {name: table[name].to_numpy()[order] for name in columns}
        total = self.info.get("total_episodes", len(order))
        apart = (np.diff(index["episode_index"], prepend=-1) >= 1).all()  # False where there is no number
        if total != len(order) or not len(order) or not apart or not (index["length"] >= 1).all():
            raise StoreError(
                f"{self.root}: meta/episodes lists {len(order)} episodes, some twice or empty, or not the {total} of "
                "meta/info.json; fetch the folder again"
            )
        return index

    def _choose(self, numbers: np.ndarray, chosen: Sequence[int] | str | None) -> np.ndarray:
        """Positions in `numbers` of the episodes that are chosen."""
        keep = np.arange(len(numbers))
        if isinstance(chosen, str):
            try:
                start, stop = (int(part) if part else None for part in chosen.split(":"))
            except ValueError:
                raise ValueError(f"{self.root}: episodes={chosen!r}; expected numbers, or 'start:stop'") from None
            keep = keep[start:stop]
        elif chosen is not None:
            strange = sorted(set(chosen) - set(numbers.tolist()))
            if strange or len(set(chosen)) < len(chosen):
                raise ValueError(
                    f"{self.root}: episodes=[{few(chosen)}]: {few(strange) if strange else 'some'} are not there, or "
                    f"twice; there are {len(numbers)} from {numbers[0]:.0f}"
                )
            keep = np.searchsorted(numbers, np.sort(np.array(chosen, np.int64)))
        if not len(keep):
            raise ValueError(f"{self.root}: episodes={chosen!r} leaves none of {len(numbers)}")
        return keep

    def _check_stretches(
        self, key: str, numbers: Any, lengths: Any, files: Sequence[Path], begin: np.ndarray, end: np.ndarray
    ) -> None:
        """Videos last as long as their episodes, and no two episodes show one stretch of a video."""
        frames = (end - begin) * self.fps
        wrong = np.abs(frames - lengths) > 1.5  # give or take a frame: some writers give the last frame's time
        if wrong.any():
            first = int(np.argmax(wrong))
            raise StoreError(
                f"{self.root}: episode {numbers[first]} has {lengths[first]} rows, but {frames[first]:.1f} frames of "
                f"{key} at {self.fps:g} fps (from_timestamp {begin[first]:.3f} to {end[first]:.3f} s)"
            )
        end = begin + lengths / self.fps
        in_order = sorted(range(len(files)), key=lambda episode: (files[episode], begin[episode]))
        for one, other in itertools.pairwise(in_order):
            if files[one] == files[other] and begin[other] < end[one] - 0.5 / self.fps:
                raise StoreError(
                    f"{files[one]}: episode {numbers[one]} ({begin[one]:.3f} to {end[one]:.3f} s) and episode "
                    f"{numbers[other]} ({begin[other]:.3f} to {end[other]:.3f} s) share a stretch of this video by "
                    f"meta/episodes, so one of them shows the other's {key}; merge or convert the data again with the "
                    "current lerobot, or choose the right episodes with `episodes`"
                )

    def _paths(self, numbers: Any, what: str, template: str, chunks: Any, files: Any, *more: Any, **key: str) -> Any:
        """A path for each episode. All must exist, and no entry of the index may be absent."""
        absent = np.isnan([chunks, files, *more]).any(axis=0)
        if absent.any():
            raise StoreError(
                f"{self.root}: meta/episodes has no entry of {what} for episode {few(numbers[absent])}; choose the "
                "other episodes with `episodes`"
            )
        try:
            paths = tuple(
                self.root / self.info[template].format(chunk_index=int(chunk), file_index=int(file), **key)
                for chunk, file in zip(chunks, files, strict=True)
            )
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            raise StoreError(f"{self.root}: meta/info.json has no usable {template} ({error!r})") from error
        for path in dict.fromkeys(paths):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: the file is missing, but meta/episodes has episodes in it; fetch the folder again, or "
                    "choose the other episodes with `episodes`"
                )
        return paths


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
