"""From what a recording left on the disk to an archive, at its end or after a crash."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from scipy.spatial.transform import Rotation, Slerp
from zarr.core.buffer import cpu
from zarr.core.sync import sync
from zarr.storage import ZipStore

from unified_video_action.dataset.formats.pictures import JpegCodec, JpegXlCodec

log = logging.getLogger(__name__)

ENDING, UNFINISHED, UNFIT = ".zarr.zip", ".recording", ".no_rows.zip"
CODECS = {"jpeg": JpegCodec, "jpegxl": JpegXlCodec}
STATE, COMMAND = 18, 19  # numbers: time, pose, gripper (then J joints, J velocities); sent, time, pose, gripper
HEAD = struct.Struct("<dQ")  # before each frame of a spool: its time, and how many bytes follow


def finish_recording(folder: Path) -> Path:
    """Make the archive of a recording whose folder NAME.recording is left, after a crash too, and remove the folder.

    Returns NAME.zarr.zip; where no moment has both a frame and a state, so that nothing can be trained on,
    NAME.no_rows.zip.

    Raises:
        ValueError: no recording, or one that is still going on.
        FileExistsError: the archive exists.
    """
    if not (folder / "about.json").is_file():
        raise ValueError(f"{folder}: no recording, it has no about.json")
    with lock(folder):
        spool = _Spool(folder)
        rows = _rows(spool)
        name = folder.name.removesuffix(UNFINISHED)
        output = folder.with_name(name + (ENDING if len(rows["data"]["robot0_eef_pos"]) else UNFIT))
        if output.exists():
            raise FileExistsError(f"{output} exists already; move it, or {folder}, away")
        partial = output.with_name(f".{output.name}.partial")
        _write_archive(partial, spool, rows)
        partial.rename(output)
    shutil.rmtree(folder)
    if output.name.endswith(UNFIT):
        log.warning("%s: no moment with both a frame and a state; nothing here can be trained on", output)
    return output


class _Spool:
    """What a recording's folder holds; an unfinished last record of a file is left out."""

    def __init__(self, folder: Path) -> None:
        self.about = json.loads((folder / "about.json").read_text())
        events = folder / "events.jsonl"
        lines = events.read_text().split("\n")[:-1] if events.exists() else ()
        self.events = [json.loads(line) for line in lines]
        self.tables = {}  # name -> (n, columns)
        self.plan_shape = (0, 0)
        for path in sorted(folder.glob("*.f64")):
            name, _, size = path.stem.partition("_")
            shape = tuple(map(int, size.split("x")))
            self.plan_shape = shape if name == "plans" else self.plan_shape
            width = int(np.prod(shape)) + 2 * (name == "plans")
            numbers = np.frombuffer(path.read_bytes()[: path.stat().st_size // 8 * 8], "<f8")
            self.tables[name] = numbers[: len(numbers) // width * width].reshape(-1, width)
        self.frames = {}  # camera -> (path, (H, W), times (n,), where their bytes begin (n,), how many (n,))
        for path in sorted(folder.glob("camera*_*.bin")):
            camera, _, size = path.stem.removeprefix("camera").partition("_")
            self.frames[int(camera)] = (path, tuple(map(int, size.split("x"))), *_index(path))


def _rows(spool: _Spool) -> dict[str, Any]:
    """Training's arrays, and for each camera the number of each row's frame."""
    states = spool.tables.get("states", np.zeros((0, STATE)))
    states = states[np.isfinite(states[:, :STATE]).all(1)]
    states = states[np.unique(states[:, 0], return_index=True)[1]]
    at = np.zeros(0)  # when the frames of the rows were taken
    if len(spool.frames) == spool.about["cameras"] and len(states) > 1:
        shown = spool.frames[0][2]
        shown = shown[(shown >= states[0, 0]) & (shown <= states[-1, 0])]
        if len(shown):
            even = np.arange(shown[0], shown[-1] + 1e-9, 1 / spool.about["rate"])
            at = shown[_nearest(shown, even)]
    position, turn, opening = np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 1))
    if len(at):
        poses = states[:, 1:17].reshape(-1, 4, 4)
        position = np.stack([np.interp(at, states[:, 0], poses[:, axis, 3]) for axis in range(3)], axis=1)
        turn = Slerp(states[:, 0], Rotation.from_matrix(poses[:, :3, :3]))(at).as_rotvec()
        opening = np.interp(at, states[:, 0], states[:, 17])[:, None]
    vectors = np.concatenate([position, turn], axis=1)  # (N, 6)
    data = {"robot0_eef_pos": position, "robot0_eef_rot_axis_angle": turn, "robot0_gripper_width": opening}
    data = {name: values.astype(np.float32) for name, values in data.items()}
    for end, pose in {"start": vectors[:1], "end": vectors[-1:]}.items():
        data[f"robot0_demo_{end}_pose"] = np.repeat(pose, len(at), axis=0)
    frames = {camera: _nearest(spool.frames[camera][2], at) for camera in spool.frames} if len(at) else {}
    return {"data": data, "frames": frames, "times": at}


def _write_archive(path: Path, spool: _Spool, rows: dict[str, Any]) -> None:
    states = spool.tables.get("states", np.zeros((0, STATE)))
    commands = spool.tables.get("commands", np.zeros((0, COMMAND)))
    plans = spool.tables.get("plans", np.zeros((0, 2)))
    joints = states[:, STATE:].reshape(len(states), 2, (states.shape[1] - STATE) // 2)
    recording = {
        "row_time": rows["times"],
        "state_time": states[:, 0], "state_pose": states[:, 1:17].reshape(-1, 4, 4), "state_gripper": states[:, 17],
        "state_joints": joints[:, 0], "state_joint_velocities": joints[:, 1],
        "command_sent": commands[:, 0], "command_time": commands[:, 1],
        "command_pose": commands[:, 2:18].reshape(-1, 4, 4), "command_gripper": commands[:, 18],
        "plan_observed": plans[:, 0], "plan_received": plans[:, 1],
        "plan_actions": plans[:, 2:].reshape(len(plans), *spool.plan_shape),
    }  # fmt: skip
    about = {**spool.about, "events": spool.events}
    codec = next(kind for kind in CODECS.values() if kind.codec_id == about["codec"]["id"]).from_config(about["codec"])
    store = ZipStore(path, mode="w")
    try:
        root = zarr.create_group(store, zarr_format=2, attributes=about.pop("attributes"))
        root.create_group("recording", attributes=about)
        arrays = {f"data/{name}": values for name, values in rows["data"].items()}
        arrays |= {f"recording/{name}": np.ascontiguousarray(values) for name, values in recording.items()}
        arrays["meta/episode_ends"] = np.array([len(rows["times"])], np.int64)
        for name, values in arrays.items():
            chunks = tuple(max(size, 1) for size in values.shape)
            root.create_array(name, shape=values.shape, chunks=chunks, dtype=values.dtype)[...] = values
        for camera, chosen in rows["frames"].items():
            source, size, _, places, lengths = spool.frames[camera]
            name, shape = f"data/camera{camera}_rgb", (*size, 3)
            root.create_array(name, shape=(len(chosen), *shape), chunks=(1, *shape), dtype=np.uint8, compressors=codec)
            with open(source, "rb") as file:
                for row, number in enumerate(chosen):
                    file.seek(places[number])
                    sync(store.set(f"{name}/{row}.0.0.0", cpu.Buffer.from_bytes(file.read(lengths[number]))))
    finally:
        store.close()


def _nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each of `wanted` the number of the time that is nearest."""
    return np.searchsorted((times[:-1] + times[1:]) / 2, wanted)


def _index(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a spool's whole frames: times, where their bytes begin, how many they are."""
    found, at, end = [], 0, path.stat().st_size
    with open(path, "rb") as file:
        while at + HEAD.size <= end:
            file.seek(at)
            moment, length = HEAD.unpack(file.read(HEAD.size))
            at += HEAD.size + length
            if at <= end:
                found.append((moment, at - length, length))
    times, places, lengths = zip(*found) if found else ((), (), ())
    return np.array(times, np.float64), np.array(places, np.int64), np.array(lengths, np.int64)


def lock(folder: Path) -> Any:
    """Held while a recording goes on, and let go even when its process dies. Raises ValueError where it is held."""
    file = open(folder / "lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except OSError as error:
        file.close()
        raise ValueError(f"{folder}: this episode is being recorded now; wait until it has ended") from error
