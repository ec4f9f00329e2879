"""The archive of an episode: made from what a recorder left on the disk, at its end or after a crash, and read again.

NAME.zarr.zip is in UMI's published layout: data/camera0_rgb uint8 (N, H, W, 3) in chunks of one picture,
data/robot0_eef_pos (N, 3) metres, data/robot0_eef_rot_axis_angle (N, 3) radians, data/robot0_gripper_width (N, 1)
metres, data/robot0_demo_start_pose and robot0_demo_end_pose (N, 6), meta/episode_ends. Its rows lie evenly in time;
each has the frame that is nearest, and the end effector's pose when that frame was taken. Of a control loop's recording
there are rows only while the policy moves the arm, each motion an episode. Below recording/ lies what no training
reads: every state, command and plan with its times, and the events as attributes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zarr
from scipy.spatial.transform import Rotation, Slerp
from zarr.core.buffer import cpu
from zarr.core.sync import sync
from zarr.storage import ZipStore

from unified_video_action.dataset.formats.pictures import JpegCodec, JpegXlCodec, register_pictures
from unified_video_action.files import written

log = logging.getLogger(__name__)

ENDING, UNFINISHED, UNFIT = ".zarr.zip", ".recording", ".zarr.zip.no_rows"
ABOUT, RECORDS = "about.json", "records.msgpack"  # of a recording's folder
CODECS = {"jpeg": JpegCodec, "jpegxl": JpegXlCodec}
COLUMNS = {  # of each kind of record: name below recording/, shape where nothing was recorded
    "state": (("time", ()), ("pose", (4, 4)), ("gripper", ()), ("joints", (0,)), ("joint_velocities", (0,))),
    "command": (("sent", ()), ("time", ()), ("pose", (4, 4)), ("gripper", ())),
    "plan": (("observed", ()), ("received", ()), ("actions", (0, 0))),
}


def finish_recording(folder: Path) -> Path:
    """Make the archive of a recording whose folder NAME.recording is left, after a crash too, and remove the folder.

    Returns NAME.zarr.zip; where no motion has both frames and states, so that nothing can be trained on,
    NAME.zarr.zip.no_rows, which no training reads.

    Raises:
        ValueError: no recording, or one that is still going on.
        FileExistsError: the archive exists.
    """
    if not (folder / ABOUT).is_file():
        raise ValueError(f"{folder}: no recording, it has no {ABOUT}")
    with lock(folder):
        about = json.loads((folder / ABOUT).read_text())
        recorded, frames, about["events"] = _read(folder)
        data, rows, ends = _rows(recorded, frames, about)
        name = folder.name.removesuffix(UNFINISHED)
        output = folder.with_name(name + (ENDING if len(rows) else UNFIT))
        if output.exists():
            raise FileExistsError(f"{output} exists already; move it, or {folder}, away")
        arrays = {f"data/{name}": values for name, values in data.items()}
        arrays |= {f"recording/{name}": values for name, values in (recorded | {"row_time": rows}).items()}
        arrays["meta/episode_ends"] = ends
        with written(output) as partial, closing(ZipStore(partial, mode="w")) as store:
            root = zarr.create_group(store, zarr_format=2, attributes=about.pop("attributes"))
            root.create_group("recording", attributes=about)
            for name, values in arrays.items():
                chunks = tuple(max(size, 1) for size in values.shape)
                root.create_array(name, shape=values.shape, chunks=chunks, dtype=values.dtype)[...] = values
            if len(rows):
                _write_frames(root, folder, about["codec"], frames, rows)
    shutil.rmtree(folder)
    if not len(rows):
        log.warning("%s: no motion with both frames and states; nothing here can be trained on", output)
    return output


def _records(folder: Path) -> Iterator[list]:
    """All that was recorded, in order; a record whose writing was interrupted is left out."""
    path = folder / RECORDS
    if not path.exists():
        return
    with open(path, "rb") as file:
        for record in msgpack.Unpacker(file):
            if not isinstance(record, list):  # zeros, which a power failure may leave at the end of a file
                return
            yield record


def _read(folder: Path) -> tuple[dict[str, np.ndarray], dict[int, np.ndarray], list[dict]]:
    """The arrays below recording/, the times (n,) of each camera's frames, and the events."""
    records, times = defaultdict(list), defaultdict(list)
    for kind, *values in _records(folder):
        if kind == "frame":  # pictures are read again when they are written
            times[values[0]].append(values[1])
        else:
            records[kind].append(values)
    plans = records["plan"]  # a chunk of another shape stopped the arm
    records["plan"] = [plan for plan in plans if np.shape(plan[2]) == np.shape(plans[0][2])]
    recorded = {}
    for kind, columns in COLUMNS.items():
        for column, (name, empty) in enumerate(columns):
            values = [record[column] for record in records[kind]]
            recorded[f"{kind}_{name}"] = np.array(values, np.float64) if values else np.zeros((0, *empty))
    events = [dict(zip(("time", "kind", "text"), event)) for event in records["event"]]
    return recorded, {camera: np.array(taken) for camera, taken in times.items()}, events


def _motions(events: list[dict]) -> list[tuple[float, float]]:
    """From each "start" to the "stop" after it; the last one may lack it, after a crash."""
    found, began = [], None
    for event in events:
        if event["kind"] == "start":
            began = event["time"]
        elif event["kind"] == "stop" and began is not None:
            found.append((began, event["time"]))
            began = None
    return found if began is None else [*found, (began, np.inf)]


def _rows(
    recorded: dict[str, np.ndarray], frames: dict[int, np.ndarray], about: dict[str, Any]
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Training's arrays but the frames, when the frame of each row was taken (N,), and the ends of the episodes."""
    times, poses, grippers = curves(recorded, "state")
    episodes = []
    if len(frames) == about["cameras"] and len(times) > 1:
        for began, ended in _motions(about["events"]) if about.get("only_motions") else [(-np.inf, np.inf)]:
            shown = frames[0][(frames[0] >= max(times[0], began)) & (frames[0] <= min(times[-1], ended))]
            if len(shown):
                even = np.arange(shown[0], shown[-1] + 1e-9, 1 / about["rate"])
                episodes.append(shown[_nearest(shown, even)])
    at, lengths = np.concatenate([np.zeros(0), *episodes]), np.array([len(each) for each in episodes], np.int64)
    ends = lengths.cumsum()
    vectors, width = np.zeros((0, 6)), np.zeros((0, 1))
    if len(at):
        position = [np.interp(at, times, poses[:, axis, 3]) for axis in range(3)]
        turn = Slerp(times, Rotation.from_matrix(poses[:, :3, :3]))(at).as_rotvec()
        vectors, width = np.column_stack([*position, turn]), np.interp(at, times, grippers)[:, None]
    data = {"eef_pos": vectors[:, :3], "eef_rot_axis_angle": vectors[:, 3:], "gripper_width": width}
    data = {f"robot0_{name}": values.astype(np.float32) for name, values in data.items()}
    for end, rows in {"start": ends - lengths, "end": ends - 1}.items():
        data[f"robot0_demo_{end}_pose"] = vectors[np.repeat(rows, lengths)]
    return data, at, ends


def _write_frames(
    root: zarr.Group, folder: Path, config: dict[str, Any], frames: dict[int, np.ndarray], rows: np.ndarray
) -> None:
    """Copy each row's picture, as it was encoded, into data/cameraN_rgb."""
    codec = next(kind for kind in CODECS.values() if kind.codec_id == config["id"]).from_config(config)
    chosen = {camera: _nearest(times, rows) for camera, times in frames.items()}
    numbers = dict.fromkeys(frames, -1)
    for kind, *values in _records(folder):
        if kind != "frame":
            continue
        camera, _, size, encoded = values
        numbers[camera] += 1
        name, shape = f"data/camera{camera}_rgb", (*size, 3)
        if not numbers[camera]:
            root.create_array(name, shape=(len(rows), *shape), chunks=(1, *shape), dtype=np.uint8, compressors=codec)
        for row in np.flatnonzero(chosen[camera] == numbers[camera]):
            sync(root.store.set(f"{name}/{row}.0.0.0", cpu.Buffer.from_bytes(encoded)))


def curves(arrays: dict[str, np.ndarray], kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rising times (n,), poses (n, 4, 4) and gripper widths (n,) of states or commands; without what is not finite."""
    times, poses, grippers = (arrays[f"{kind}_{name}"] for name in ("time", "pose", "gripper"))
    order = np.unique(times, return_index=True)[1]
    order = order[np.isfinite(poses[order]).all((1, 2)) & np.isfinite(times[order] + grippers[order])]
    return times[order], poses[order], grippers[order]


def _nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each of `wanted` the number of the time that is nearest."""
    return np.searchsorted((times[:-1] + times[1:]) / 2, wanted)


def lock(folder: Path) -> Any:
    """Held while a recording goes on, and let go even when its process dies. Raises ValueError where it is held."""
    file = open(folder / "lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except OSError as error:
        file.close()
        raise ValueError(f"{folder}: this episode is being recorded now; wait until it has ended") from error


@dataclass(frozen=True)
class Recording:
    """An episode's archive, opened; times are seconds since its first state."""

    name: str
    frames: Sequence[zarr.Array]  # of each camera uint8 (N, H, W, 3)
    row_time: np.ndarray  # (N,)
    arrays: dict[str, np.ndarray]  # those below recording/, by name
    events: tuple[dict, ...]  # time, kind, text
    rate: float  # rows per second
    instruction: str

    @classmethod
    def open(cls, path: Path) -> Recording:
        """Raises FileNotFoundError, and ValueError for what is not a recorded episode."""
        register_pictures()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; give an episode's NAME.zarr.zip")
        try:
            root = zarr.open_group(ZipStore(path, mode="r"), mode="r")
            group, views = root["recording"], range(root["recording"].attrs["cameras"])
            arrays = {name: array[...] for name, array in group.arrays()}
            events, rate = group.attrs["events"], group.attrs["rate"]
        except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: no recorded episode ({error})") from error
        starts = [arrays[name][0] for name in ("state_time", "row_time", "command_time") if len(arrays[name])]
        began = starts[0] if starts else 0.0
        for name in ("row_time", "state_time", "command_time", "command_sent", "plan_observed", "plan_received"):
            arrays[name] = arrays[name] - began
        events = tuple({**event, "time": event["time"] - began} for event in events)
        frames = [root[f"data/camera{view}_rgb"] for view in views if f"camera{view}_rgb" in root["data"]]
        return cls(path.name, frames, arrays["row_time"], arrays, events, rate, str(root.attrs.get("instruction", "")))

    @property
    def seconds(self) -> float:
        ends = [self.arrays[name] for name in ("state_time", "command_time", "row_time")]
        return max([float(times[-1]) for times in ends if len(times)], default=0.0)
