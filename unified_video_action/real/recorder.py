"""Recordings of episodes: what was seen, reached, planned, sent and stopped, as data to train on.

While an episode runs, a thread of its own writes everything to a folder NAME.recording beside the archive that it will
become, and has it on the disk every half second; a crash loses no more, and `finish_recording` ends the work later.

The archive NAME.zarr.zip is in UMI's published layout: data/camera0_rgb uint8 (N, H, W, 3) in chunks of one picture,
data/robot0_eef_pos (N, 3) metres, data/robot0_eef_rot_axis_angle (N, 3) radians, data/robot0_gripper_width (N, 1)
metres, data/robot0_demo_start_pose and robot0_demo_end_pose (N, 6), meta/episode_ends. Its rows lie evenly in time;
each has the frame that is nearest, and where the hand was when that frame was taken. Below recording/ lies what no
training reads: every state, command and plan with its times, and the events as attributes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from scipy.spatial.transform import Rotation, Slerp
from zarr.core.buffer import cpu
from zarr.core.sync import sync
from zarr.storage import ZipStore

from unified_video_action.dataset.jpeg import JpegCodec, JpegXlCodec
from unified_video_action.real.robot import ArmCommand, ArmState, Frame

log = logging.getLogger(__name__)

ENDING, UNFINISHED, UNFIT = ".zarr.zip", ".recording", ".no_rows.zip"
CODECS = {"jpeg": JpegCodec, "jpegxl": JpegXlCodec}
FRAMES_WAITING = 90  # of all cameras, until they are written; more are lost
FRAMES_AT_ONCE = 10  # written before rows get their turn
ROWS_WAITING = 20_000  # states, commands, plans and events together
LOOK, SAFE = 0.02, 0.5  # seconds between two looks at what is waiting, and until it is on the disk
STATE, COMMAND = 18, 19  # numbers: time, pose, gripper (then J joints, J velocities); sent, time, pose, gripper
HEAD = struct.Struct("<dQ")  # before each frame of a spool: its time, and how many bytes follow


class EpisodeRecorder:
    """Records one episode; a context that ends the recording whatever happens.

    Every method but `finish` returns at once, from any thread, and keeps what it is given: nobody changes it any more.

    Args:
        output: the archive, NAME.zarr.zip; neither it nor NAME.recording exists yet.
        cameras: how many there are.
        rate: rows per second.
        codec: "jpeg", or "jpegxl", which is up to a third smaller and takes some thirty times as long.
        level: quality of pictures, 1 to 100.
        attributes: what else is known of the episode: robot, checkpoint, instruction, ...; JSON.
        patient: wait for the writing rather than lose anything: for a simulation that is faster than time.

    Raises:
        ValueError: another ending, codec or rate.
        FileExistsError: the episode was recorded already.
    """

    def __init__(
        self, output: str | Path, cameras: int = 1, rate: float = 30.0, codec: str = "jpeg", level: int = 95,
        attributes: Mapping[str, Any] | None = None, patient: bool = False,
    ) -> None:  # fmt: skip
        self.output = Path(output)
        if not self.output.name.endswith(ENDING):
            raise ValueError(f"{output}: an episode's archive ends in {ENDING}")
        if codec not in CODECS or not rate > 0:
            raise ValueError(f"codec={codec!r}, rate={rate}: expected {' or '.join(CODECS)}, and a positive rate")
        self.folder = self.output.with_name(self.output.name.removesuffix(ENDING) + UNFINISHED)
        if taken := [path for path in (self.output, self.folder) if path.exists()]:
            raise FileExistsError(f"{taken[0]} exists already; an episode is never recorded over another")
        self.lost: dict[str, int] = {}  # frames, rows: how many there was no room for
        self._codec, self._patient = CODECS[codec](level=level), patient
        about = {"cameras": cameras, "rate": rate, "codec": self._codec.get_config(), "started": time.time()}
        self._about = {**about, "attributes": dict(attributes or {})}
        self._frames: deque[tuple[int, Frame]] = deque()
        self._rows: deque[tuple[str, Any]] = deque()
        self._newest = [-np.inf] * cameras  # time of each camera's newest frame
        self._ending = threading.Event()
        self._failure: Exception | None = None

    def __enter__(self) -> EpisodeRecorder:
        self.folder.mkdir(parents=True)
        self._lock = _lock(self.folder)
        (self.folder / "about.json").write_text(json.dumps(self._about))
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.event(time.monotonic(), "error", f"{type(error).__name__}: {error}")
        self.finish()

    def frame(self, camera: int, frame: Frame) -> None:
        """A frame of a camera; the same one again is passed over."""
        if frame.time > self._newest[camera]:
            self._newest[camera] = frame.time
            self._keep(self._frames, (camera, frame), FRAMES_WAITING, "frames")

    def state(self, state: ArmState) -> None:
        self._keep(self._rows, ("states", state), ROWS_WAITING, "rows")

    def command(self, command: ArmCommand, sent: float) -> None:
        """A command that was sent to the arm at the time `sent`."""
        self._keep(self._rows, ("commands", (command, sent)), ROWS_WAITING, "rows")

    def plan(self, observed: float, received: float, actions: np.ndarray) -> None:
        """A plan (A, D), in the policy's terms: when its newest frame was taken, and when it was there."""
        self._keep(self._rows, ("plans", (observed, received, actions)), ROWS_WAITING, "rows")

    def event(self, time: float, kind: str, text: str) -> None:
        """What is worth a mark in the plot: a stop ("stop"), a command that was altered ("clip"), ..."""
        self._keep(self._rows, ("events", {"time": time, "kind": kind, "text": text}), ROWS_WAITING, "rows")

    def finish(self) -> Path | None:
        """Write what is waiting, then the archive; returns its path. None: the disk failed, or it was called before."""
        if self._ending.is_set():
            return None
        if self.lost:
            log.warning("%s: not recorded, because the disk or this computer is too slow: %s", self.output, self.lost)
            self.event(time.monotonic(), "lost", json.dumps(self.lost))
        self._ending.set()
        self._thread.join()
        self._lock.close()
        if self._failure is not None:
            log.error("%s: the recording broke off: %s; what is there can be finished", self.folder, self._failure)
            return None
        try:
            return finish_recording(self.folder)
        except OSError as error:  # of a full disk, say; whatever else goes on must not end with it
            log.error("%s: no archive can be written: %s; the folder is left, and can be finished", self.folder, error)
            return None

    def _keep(self, waiting: deque, item: Any, room: int, what: str) -> None:
        while len(waiting) >= room:
            if not self._patient or self._failure is not None:
                self.lost[what] = self.lost.get(what, 0) + 1
                return
            time.sleep(LOOK)
        waiting.append(item)

    def _write(self) -> None:
        """The thread that writes."""
        files = _Files(self.folder)
        try:
            safe = time.monotonic()
            while True:
                ending = self._ending.is_set()  # before the last look at what is waiting
                for _ in range(len(self._rows)):
                    self._write_row(files, *self._rows.popleft())
                for _ in range(min(len(self._frames), FRAMES_AT_ONCE)):
                    self._write_frame(files, *self._frames.popleft())
                if ending or time.monotonic() > safe + SAFE:
                    safe = time.monotonic()
                    for file in files.values():
                        file.flush()
                        os.fsync(file.fileno())
                if ending and not self._frames:
                    return
                time.sleep(0 if self._frames else LOOK)
        except Exception as error:  # a full disk, say: told at the end, the arm goes on
            self._failure = error
            log.error("%s: nothing is recorded any more: %s", self.folder, error)
        finally:
            for file in files.values():
                file.close()

    def _write_row(self, files: _Files, kind: str, what: Any) -> None:
        if kind == "events":
            files["events.jsonl"].write(json.dumps(what).encode() + b"\n")
            return
        if kind == "states":
            row = [what.time, *what.pose.ravel(), what.gripper, *what.joints, *what.joint_velocities]
        elif kind == "commands":
            row = [what[1], what[0].time, *what[0].pose.ravel(), what[0].gripper]
        else:
            row = [*what[:2], *np.ravel(what[2])]
        name = f"plans_{'x'.join(map(str, np.shape(what[2])))}" if kind == "plans" else f"{kind}_{len(row)}"
        files[f"{name}.f64"].write(np.asarray(row, "<f8").tobytes())

    def _write_frame(self, files: _Files, camera: int, frame: Frame) -> None:
        encoded = self._codec.encode(frame.image[None])
        size = "x".join(map(str, frame.image.shape[:2]))
        files[f"camera{camera}_{size}.bin"].write(HEAD.pack(frame.time, len(encoded)) + encoded)


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
    with _lock(folder):
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


class _Files(dict):
    """Files of a folder by name, opened when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __missing__(self, name: str) -> Any:
        return self.setdefault(name, open(self._folder / name, "ab"))


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


def _lock(folder: Path) -> Any:
    """Held while a recording goes on, and let go even when its process dies. Raises ValueError where it is held."""
    file = open(folder / "lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except OSError as error:
        file.close()
        raise ValueError(f"{folder}: this episode is being recorded now; wait until it has ended") from error
