"""Small recordings in public formats, of frames that tell which row they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BITS = 12  # of a row's number, shown as black and white squares


@dataclass
class Episode:
    """One episode of T steps to be written."""

    frames: Mapping[str, np.ndarray]  # camera feature -> uint8 (T, H, W, 3)
    values: Mapping[str, np.ndarray]  # feature -> (T, d)
    task: str = "push"

    def __len__(self) -> int:
        return len(next(iter(self.frames.values())))


def numbered_frames(numbers: Sequence[int], size: tuple[int, int] = (48, 64), tint: int = 0) -> np.ndarray:
    """Frames (n, H, W, 3) on a smooth ground, with `numbers` in binary as a row of squares at the top."""
    height, width = size
    row, column = np.mgrid[:height, :width]
    ground = np.stack([row * 200 // height, column * 200 // width, np.full(size, tint)], axis=-1).astype(np.uint8)
    frames, side = np.repeat(ground[None], len(numbers), axis=0), width // BITS
    for frame, number in zip(frames, numbers, strict=True):
        for bit in range(BITS):
            frame[:side, bit * side : (bit + 1) * side] = 255 * (number >> bit & 1)
    return frames


def read_numbers(frames: np.ndarray) -> np.ndarray:
    """The numbers (n,) that frames (n, H, W, 3) show."""
    side = frames.shape[2] // BITS
    squares = np.stack([frames[:, 1 : side - 1, b * side + 1 : (b + 1) * side - 1] for b in range(BITS)])
    return ((squares.mean(axis=(2, 3, 4)) > 127) << np.arange(BITS)[:, None]).sum(axis=0)


def psnr(frames: np.ndarray, others: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, of the worst frame."""
    error = ((frames.astype(float) - others) ** 2).reshape(len(frames), -1).mean(axis=1)
    return float(10 * np.log10(255**2 / max(error.max(), 1e-9)))


def write_video(path: Path, frames: np.ndarray, fps: float = 10, codec: str = "libx264", gop: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:3]
        if codec == "mpeg4":  # which knows no crf
            stream.bit_rate = 8_000_000
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", gop
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def write_lerobot(
    root: Path,
    episodes: Sequence[Episode],
    fps: int = 10,
    episodes_per_data_file: int = 2,
    episodes_per_video: int = 3,
    pictures: Sequence[str] = (),
    codec: str = "libx264",
) -> Path:
    """Write a LeRobotDataset v3 folder. Cameras in `pictures` are PNGs in the parquet files, the others are mp4."""
    tasks = sorted({episode.task for episode in episodes})
    files = {"data": _blocks(len(episodes), episodes_per_data_file)}
    index = {"episode_index": list(range(len(episodes))), "tasks": [[episode.task] for episode in episodes]}
    index["length"] = [len(episode) for episode in episodes]
    ends = np.cumsum(index["length"])
    index |= {"dataset_from_index": (ends - index["length"]).tolist(), "dataset_to_index": ends.tolist()}
    for camera in episodes[0].frames:
        if camera not in pictures:
            files[f"videos/{camera}"] = _blocks(len(episodes), episodes_per_video)
            spans = _write_videos(root, camera, episodes, files[f"videos/{camera}"], fps, codec)
            for name, values in zip(("from_timestamp", "to_timestamp"), spans, strict=True):
                index[f"videos/{camera}/{name}"] = values
    for name, own in files.items():
        index |= {f"{name}/chunk_index": [chunk for chunk, _ in own], f"{name}/file_index": [file for _, file in own]}
    for file in sorted(set(files["data"])):
        mine = [number for number, own in enumerate(files["data"]) if own == file]
        _write_rows(_numbered(root / "data", file, "parquet"), episodes, mine, ends, tasks, pictures, fps)
    _write_table(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet", index)
    _write_table(root / "meta" / "tasks.parquet", {"task_index": list(range(len(tasks))), "__index_level_0__": tasks})
    (root / "meta" / "info.json").write_text(json.dumps(_info(episodes, fps, pictures, tasks), indent=1))
    return root


def _blocks(count: int, size: int) -> list[tuple[int, int]]:
    """(chunk, file) of each of `count` episodes: `size` in a file, two files in a chunk."""
    return [divmod(number // size, 2) for number in range(count)]


def _numbered(folder: Path, file: tuple[int, int], suffix: str) -> Path:
    return folder / f"chunk-{file[0]:03d}" / f"file-{file[1]:03d}.{suffix}"


def _write_videos(root, camera, episodes, files, fps, codec) -> tuple[list[float], list[float]]:
    begin, end = [], []
    for file in sorted(set(files)):
        mine = [episode for episode, own in zip(episodes, files, strict=True) if own == file]
        stops = np.cumsum([len(episode) for episode in mine]) / fps
        begin, end = [*begin, *[0.0, *stops[:-1]]], [*end, *stops]
        write_video(
            _numbered(root / "videos" / camera, file, "mp4"),
            np.concatenate([episode.frames[camera] for episode in mine]),
            fps,
            codec,
        )
    return begin, end


def _write_rows(path, episodes, mine, ends, tasks, pictures, fps) -> None:
    """Rows of the episodes `mine`, a row group each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = None
    for number in mine:
        episode = episodes[number]
        steps = np.arange(len(episode))
        columns = {name: list(values.astype(np.float32)) for name, values in episode.values.items()}
        columns |= {name: [_png(frame) for frame in episode.frames[name]] for name in pictures}
        columns |= {
            "timestamp": (steps / fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(len(steps), number),
            "index": steps + ends[number] - len(steps),
            "task_index": np.full(len(steps), tasks.index(episode.task)),
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def _png(frame: np.ndarray) -> dict:
    import cv2

    return {"bytes": cv2.imencode(".png", frame[..., ::-1])[1].tobytes(), "path": "frame.png"}


def _write_table(path: Path, columns: Mapping[str, Sequence]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path)


def _info(episodes, fps, pictures, tasks) -> dict:
    first = episodes[0]
    features = {
        camera: {
            "dtype": "image" if camera in pictures else "video",
            "shape": [3, *frames.shape[1:3]] if camera in pictures else list(frames.shape[1:]),
            "names": ["height", "width", "channel"],
        }
        for camera, frames in first.frames.items()
    }
    numbers = {name: ("float32", values.shape[1]) for name, values in first.values.items()}
    numbers |= {"timestamp": ("float32", 1), "episode_index": ("int64", 1), "task_index": ("int64", 1)}
    features |= {name: {"dtype": kind, "shape": [width], "names": None} for name, (kind, width) in numbers.items()}
    return {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(episodes),
        "total_frames": sum(map(len, episodes)),
        "total_tasks": len(tasks),
        "chunks_size": 2,
        "fps": fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }


def write_umi(
    path: Path,
    frames: np.ndarray,
    poses: np.ndarray,
    widths: np.ndarray | None = None,
    ends: Sequence[int] | None = None,
    codec: object | None = None,
    **more: np.ndarray,
) -> Path:
    """Write an archive in UMI's layout, a zip if the name ends so: frames (N, H, W, 3), poses (N, 6), `more` arrays."""
    from unified_video_action.dataset.demonstrations import new_store
    from unified_video_action.dataset.formats.pictures import JpegXlCodec

    count = len(poses)
    arrays = {
        "camera0_rgb": frames,
        "robot0_eef_pos": poses[:, :3].astype(np.float32),
        "robot0_eef_rot_axis_angle": poses[:, 3:].astype(np.float32),
        "robot0_gripper_width": np.zeros((count, 1), np.float32) if widths is None else widths.astype(np.float32),
        **more,
    }
    with new_store(path, codec or JpegXlCodec()) as store:
        for start, end in zip([0, *(ends or [count])[:-1]], ends or [count], strict=True):
            store.append({name: values[start:end] for name, values in arrays.items()}, {})
    return path
