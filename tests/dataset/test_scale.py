"""What memory depends on: not on how many episodes there are. Measured in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.dataset.recordings import Episode, numbered_frames, write_lerobot, write_video

STEPS = 24
MEASURE = """
import json, sys
import numpy as np
from unified_video_action.dataset.formats.lerobot import LeRobotSource
from unified_video_action.dataset.mixture import Wanted
from unified_video_action.dataset.pusht import PushTSource
from unified_video_action.dataset.formats.video_folder import VideoFolderSource

def memory():  # MiB of this process's own
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))

def look(kind, path, episodes):
    options = {"cameras": {"image": "observation.image"}} if kind == "LeRobotSource" else {}
    (table,) = globals()[kind](path, **options).tables(Wanted(("image",), (), 2))
    assert table.store.n_episodes == episodes
    rows = np.linspace(0, len(table) - 1, int(sys.argv[5])).astype(int)  # as many frames, out of all episodes
    for row in rows:
        table.stored_frames("image", np.array([row]))
    table.store.fingerprint()
    return table

kind, few, many, counts = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
kept = [look(kind, few, counts[0]), look(kind, few, counts[0])]  # buffers and libraries have their size
before = memory()
kept.append(look(kind, few, counts[0]))
few_grew, before = memory() - before, memory()
kept.append(look(kind, many, counts[1]))
print(json.dumps([few_grew, memory() - before]))
"""


def measure(kind: str, few: Path, many: Path, counts: tuple[int, int], reads: int = 160) -> tuple[float, float]:
    """MiB that opening and reading so many frames take: a store of few episodes, and another of many."""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc, which this system lacks")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", MEASURE, kind, str(few), str(many), json.dumps(counts), str(reads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


def assert_bounded(grown: tuple[float, float], episodes: int, frame: int) -> None:
    """Many episodes may take a tenth of what their frames would, had they been kept."""
    few, many = grown
    assert many - few < 0.1 * episodes * STEPS * frame / 2**20, f"MiB: few {few:.1f}, many {many:.1f}"


def test_video_files(tmp_path):
    for name, count in (("few", 8), ("many", 160)):
        write_video(tmp_path / name / "0000.mp4", numbered_frames(range(STEPS), (224, 224)))
        for number in range(1, count):
            os.link(tmp_path / name / "0000.mp4", tmp_path / name / f"{number:04d}.mp4")
    grown = measure("VideoFolderSource", tmp_path / "few", tmp_path / "many", (8, 160))
    assert_bounded(grown, 160, 224 * 224 * 3)


@pytest.mark.parametrize("pictures", [[], ["observation.image"]], ids=["videos", "parquet"])
def test_lerobot(tmp_path, pictures):
    frames = numbered_frames(range(STEPS), (224, 224))
    episode = Episode({"observation.image": frames}, {"action": np.zeros((STEPS, 2))})
    for name, count in (("few", 8), ("many", 160)):
        write_lerobot(tmp_path / name, [episode] * 8, pictures=pictures, episodes_per_video=1, episodes_per_data_file=1)
        multiply(tmp_path / name, count)
    grown = measure("LeRobotSource", tmp_path / "few", tmp_path / "many", (8, 160))
    assert_bounded(grown, 160, 224 * 224 * 3)


def test_jpeg_store(tmp_path):
    import zarr

    from unified_video_action.dataset.formats.pictures import JpegCodec
    from unified_video_action.dataset.formats.pictures import register_pictures as register_jpeg

    register_jpeg()
    frames = numbered_frames(range(STEPS), (224, 224))
    for name, count in (("few", 8), ("many", 160)):
        root = zarr.open_group(str(tmp_path / name), mode="w", zarr_format=2)
        data, meta = root.create_group("data"), root.create_group("meta")
        ends = np.arange(1, count + 1) * STEPS
        meta.create_array("episode_ends", data=ends)
        data.create_array("action", data=np.ones((count * STEPS, 2), np.float32))
        shape = (count * STEPS, 224, 224, 3)
        data.create_array("img", shape=shape, chunks=(1, *shape[1:]), dtype="u1", compressors=JpegCodec())
        data["img"][:STEPS] = frames
        for row in range(STEPS, count * STEPS):
            chunks = tmp_path / name / "data" / "img"
            os.link(chunks / f"{row % STEPS}.0.0.0", chunks / f"{row}.0.0.0")
    grown = measure("PushTSource", tmp_path / "few", tmp_path / "many", (8, 160), reads=1000)
    assert_bounded(grown, 160, 224 * 224 * 3)


def multiply(folder: Path, count: int) -> None:
    """Let a folder of 8 equal episodes, a file each, have `count` of them: the frames' files are links."""
    path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    columns = pq.read_table(path).to_pydict()
    kept = {name: [values[0]] * count for name, values in columns.items()}
    numbers = range(count)
    kept["episode_index"] = list(numbers)
    for name in kept:
        if name.endswith("chunk_index"):
            kept[name] = [100] * count
        if name.endswith("file_index"):
            kept[name] = list(numbers)
    import pyarrow as pa

    pq.write_table(pa.table(kept), path)
    info = folder / "meta" / "info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "total_episodes": count}))
    first = pq.read_table(folder / "data" / "chunk-000" / "file-000.parquet")
    place = first.column_names.index("episode_index")
    (folder / "data" / "chunk-100").mkdir()
    for number in numbers:
        rows = first.set_column(place, "episode_index", pa.array([number] * len(first)))
        pq.write_table(rows, folder / "data" / "chunk-100" / f"file-{number:03d}.parquet")
    videos = folder / "videos" / "observation.image"
    if videos.is_dir():
        (videos / "chunk-100").mkdir()
        for number in numbers:
            os.link(videos / "chunk-000" / "file-000.mp4", videos / "chunk-100" / f"file-{number:03d}.mp4")
