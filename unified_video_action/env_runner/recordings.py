"""Rollouts to look at and to learn from: a Rerun recording, and a LeRobotDataset v3 folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unified_video_action.env_runner.rollout import instruction_of
from unified_video_action.env_runner.simulators import Observation
from unified_video_action.env_runner.videos import Rollout, scaled, write_mp4
from unified_video_action.files import written
from unified_video_action.spec import TaskSpec

FILES_IN_CHUNK = 1000
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


def cameras_of(observation: Observation) -> list[str]:
    return [name for name, value in observation.items() if value.ndim == 3 and value.dtype == np.uint8]


def states_of(observation: Observation) -> dict[str, np.ndarray]:
    """Vectors of numbers by name."""
    return {name: value for name, value in observation.items() if value.ndim == 1 and value.dtype.kind in "biuf"}


def write_rerun(path: Path, rollouts: Iterable[Rollout], fps: float, title: str, task: TaskSpec) -> None:
    """Write one recording of all rollouts, one after the other, on the timelines `frame` and `time`.

    Entities are camera/NAME, imagined/N_steps (from when it was imagined on) and real/N_steps (what the camera showed
    N steps after that moment), state/NAME, action, score, and episode, which says with which seed one begins and how
    it ends. Between two episodes there is an empty frame.
    """
    import rerun as rr
    import rerun.blueprint as rrb

    stream, frame, first = rr.RecordingStream(f"rollouts of {title}"), 0, None
    with written(path) as part:
        stream.save(part)
        if task.action_names:
            stream.log("action", rr.SeriesLines(names=task.action_names), static=True)
        for rollout in rollouts:
            episode, moments = rollout.episode, {moment.step: moment for moment in rollout.imagined}
            result = f"score {episode.score:.3f}, {'success' if episode.success else 'no success'}"
            for step, seen in enumerate(rollout.seen):
                stream.set_time("frame", sequence=frame)
                stream.set_time("time", duration=frame / fps)
                if step == 0:
                    said = instruction_of(seen) or episode.task
                    stream.log("episode", rr.TextLog(f"seed {episode.seed}: {said and said + '; '}{result}"))
                for name in cameras_of(seen):
                    stream.log(f"camera/{name}", rr.Image(seen[name]).compress(jpeg_quality=90))
                for name, state in states_of(seen).items():
                    stream.log(f"state/{name}", rr.Scalars(state))
                if step < episode.steps:
                    stream.log("action", rr.Scalars(episode.actions[step]))
                if step:
                    stream.log("score", rr.Scalars(episode.curve[step - 1]))
                if moment := moments.get(step):
                    for offset, image in zip(moment.offsets, moment.frames, strict=True):
                        height, width = seen[task.camera_names[0]].shape[:2]  # the codec may have made it square
                        image = np.asarray(scaled(image, len(image), round(len(image) * width / height)))
                        stream.log(f"imagined/{offset}_steps", rr.Image(image).compress(jpeg_quality=90))
                        come = rollout.seen[step + offset : step + offset + 1]
                        true = [rr.Image(each[task.camera_names[0]]).compress(jpeg_quality=90) for each in come]
                        stream.log(f"real/{offset}_steps", *(true or [rr.Clear(recursive=False)]))
                first, frame = first or rollout, frame + 1
            stream.set_time("frame", sequence=frame)
            stream.set_time("time", duration=frame / fps)
            stream.log("/", rr.Clear(recursive=True))  # so that no curve joins two episodes
            frame += 1
        if first is not None:
            cameras = [rrb.Spatial2DView(origin=f"camera/{name}", name=name) for name in cameras_of(first.seen[0])]
            offsets = [offset for moment in first.imagined[:1] for offset in moment.offsets]
            compared = [
                rrb.Horizontal(
                    *(rrb.Spatial2DView(origin=f"{row}/{n}_steps", name=f"{row} +{n} steps") for n in offsets)
                )
                for row in ("imagined", "real")
            ]
            pictures = [*cameras, rrb.Vertical(*compared)] if offsets else cameras
            shares = [2] * len(cameras) + [len(offsets)] * bool(offsets)
            curves = [
                rrb.TimeSeriesView(origin="score", name="score", axis_y=rrb.ScalarAxis(range=(0, 1))),
                *(rrb.TimeSeriesView(origin=name, name=name) for name in ("action", "state")),
            ]
            log = rrb.TextLogView(origin="episode", name="episodes")
            rows = [rrb.Horizontal(*pictures, column_shares=shares), rrb.Horizontal(*curves), log]
            stream.send_blueprint(rrb.Blueprint(rrb.Vertical(*rows, row_shares=[4, 2, 1]), collapse_panels=True))
        stream.disconnect()  # all is on disk now


def write_lerobot(root: Path, rollouts: Iterable[Rollout], fps: float, title: str, task: TaskSpec) -> None:
    """Write a LeRobotDataset v3 folder: a row for every executed action, with what was seen before it.

    Features are observation.images.CAMERA (mp4, one for each episode), observation.state (all vectors of the
    observation side by side), action, next.reward (the score), next.done and next.success. The task is the episode's
    instruction or task, else `title`.

    Raises:
        ValueError: frames of an odd width or height, or no rollout.
    """
    index, tasks, columns, colours, writer = [], {}, [], {}, None
    with written(root) as part:
        table_path = part / "data" / "chunk-000" / "file-000.parquet"
        table_path.parent.mkdir(parents=True)
        for number, rollout in enumerate(rollouts):
            episode, seen = rollout.episode, rollout.seen[:-1]
            instruction = instruction_of(seen[0]) or episode.task or title
            steps, begin, last = np.arange(episode.steps), sum(row["length"] for row in index), episode.steps - 1
            states = [np.concatenate(list(states_of(each).values()) or [np.zeros(0)]) for each in seen]
            values = {
                "observation.state": np.array(states, np.float32),
                "action": np.array(episode.actions, np.float32),
                "timestamp": (steps / fps).astype(np.float32),
                "frame_index": steps,
                "episode_index": np.full_like(steps, number),
                "index": begin + steps,
                "task_index": np.full_like(steps, tasks.setdefault(instruction, len(tasks))),
                "next.reward": np.array(episode.curve, np.float32),
                "next.done": steps == last,
                "next.success": (steps == last) & episode.success,
            }
            if not values["observation.state"].size:
                del values["observation.state"]
            columns.append(values)
            table = pa.table({name: _column(value) for name, value in values.items()})
            writer = writer or pq.ParquetWriter(table_path, table.schema)
            writer.write_table(table)
            parts = [f"{name}.{index}" for name, state in states_of(seen[0]).items() for index in range(len(state))]
            row = {"episode_index": number, "tasks": [instruction], "length": len(steps), "dataset_from_index": begin}
            row |= {"dataset_to_index": begin + len(steps), "data/chunk_index": 0, "data/file_index": 0}
            for camera in cameras_of(seen[0]):
                key, (chunk, file) = f"observation.images.{camera}", divmod(number, FILES_IN_CHUNK)
                video = part / "videos" / key / f"chunk-{chunk:03d}" / f"file-{file:03d}.mp4"
                video.parent.mkdir(parents=True, exist_ok=True)
                frames = np.stack([each[camera] for each in seen])  # (T, H, W, 3)
                write_mp4(video, frames, fps, {"crf": "12", "g": "2"})  # every other frame is found at once
                colours.setdefault(key, (frames.shape[1:], np.zeros((3, 256), np.int64)))[1][...] += _histogram(frames)
                row |= {f"videos/{key}/chunk_index": chunk, f"videos/{key}/file_index": file}
                row |= {f"videos/{key}/from_timestamp": 0.0, f"videos/{key}/to_timestamp": len(steps) / fps}
            index.append(row)
        if writer is None:
            raise ValueError(f"{root}: there is no rollout to record")
        writer.close()
        numbers = {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}
        named = {"observation.state": parts, "action": list(task.action_names) or None}
        _write_meta(part / "meta", index, tasks, numbers, colours, named, fps)


def _column(values: np.ndarray) -> pa.Array:
    """(T,) or (T, d)"""
    flat = pa.array(values.reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _histogram(frames: np.ndarray) -> np.ndarray:
    """How often each value occurs in each colour: (3, 256)."""
    return np.stack([np.bincount(frames[..., colour].reshape(-1), minlength=256) for colour in range(3)])


def _write_meta(
    folder: Path,
    index: Sequence[Mapping[str, Any]],
    tasks: Mapping[str, int],
    numbers: Mapping[str, np.ndarray],
    colours: Mapping[str, tuple[tuple[int, ...], np.ndarray]],
    parts: Mapping[str, Sequence[str] | None],
    fps: float,
) -> None:
    """Write info.json, stats.json and the tables of tasks and episodes.

    Args:
        numbers: all rows of each column. colours: camera -> shape of its frames (H, W, 3), and its histogram.
        parts: column -> what its numbers are, where that is known.
    """
    (folder / "episodes" / "chunk-000").mkdir(parents=True)
    table = pa.table({name: [row[name] for row in index] for name in index[0]})
    pq.write_table(table, folder / "episodes" / "chunk-000" / "file-000.parquet")
    # LeRobot takes the texts from the index of a pandas table.
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    described = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
        for name, (kind, stored) in kinds.items()
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": list(tasks.values()), "task": list(tasks)})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), folder / "tasks.parquet")

    features, stats = {}, {}
    for key, (shape, histogram) in colours.items():
        video = {"video.fps": fps, "video.codec": "h264", "video.pix_fmt": "yuv420p", "has_audio": False}
        names = ["height", "width", "channels"]
        features[key] = {"dtype": "video", "shape": list(shape), "names": names, "info": video}
        stats[key] = _colour_stats(histogram)
    for name, values in numbers.items():
        shape = list(values.shape[1:]) or [1]
        features[name] = {"dtype": str(values.dtype), "shape": shape, "names": parts.get(name)}
        flat = values.reshape(len(values), -1).astype(np.float64)
        stats[name] = {each: getattr(flat, each)(axis=0).tolist() for each in ("min", "max", "mean", "std")}
        stats[name] |= {f"q{100 * q:02.0f}": np.quantile(flat, q, axis=0).tolist() for q in QUANTILES}
        stats[name]["count"] = [len(flat)]
    info = {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(index),
        "total_frames": len(numbers["index"]),
        "total_tasks": len(tasks),
        "chunks_size": FILES_IN_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "fps": fps,
        "splits": {"train": f"0:{len(index)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }
    for name, content in {"info": info, "stats": stats}.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def _colour_stats(histogram: np.ndarray) -> dict[str, Any]:
    """Of a camera's values, from 0 to 1: each (3, 1, 1)."""
    levels, share = np.arange(256) / 255, histogram / histogram.sum(axis=1, keepdims=True)  # (3, 256)
    mean, until = share @ levels, share.cumsum(axis=1)
    found = {"mean": mean, "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))}
    found |= {
        "min": levels[(histogram > 0).argmax(axis=1)],
        "max": levels[255 - (histogram > 0)[:, ::-1].argmax(axis=1)],
    }
    found |= {f"q{100 * q:02.0f}": levels[(until >= q).argmax(axis=1)] for q in QUANTILES}
    stats = {name: values.reshape(3, 1, 1).tolist() for name, values in found.items()}
    return stats | {"count": [int(histogram[0].sum())]}
