"""What memory depends on: not on how many episodes there are. Measured in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.dataset.recordings import Episode, numbered_frames, write_lerobot, write_video

STEPS, FEW, MANY = 24, 8, 160
FRAMES = numbered_frames(range(STEPS), (224, 224))
MEASURE = """
import json, sys
import numpy as np
from unified_video_action.dataset.formats.lerobot import LeRobotSource
from unified_video_action.dataset.formats.video_folder import VideoFolderSource
from unified_video_action.dataset.mixture import Wanted

def memory():  # MiB of this process's own
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))

def look(kind, path, episodes):
    options = {"cameras": {"image": "observation.image"}} if kind == "LeRobotSource" else {}
    (table,) = globals()[kind](path, **options).tables(Wanted(("image",), (), 2))
    assert table.store.n_episodes == episodes
    for row in np.linspace(0, len(table) - 1, 160).astype(int):  # as many frames, out of all episodes
        table.stored_frames("image", np.array([row]))
    table.store.fingerprint()
    return table

for kind, few, many in json.loads(sys.argv[1]):
    kept = [look(kind, few, 8), look(kind, few, 8)]  # buffers and libraries have their size
    before = memory()
    kept.append(look(kind, few, 8))
    few_grew, before = memory() - before, memory()
    kept.append(look(kind, many, 160))
    print(json.dumps([kind, few_grew, memory() - before]))
"""


def videos(root: Path, count: int) -> Path:
    write_video(root / "0000.mp4", FRAMES)
    for number in range(1, count):
        os.link(root / "0000.mp4", root / f"{number:04d}.mp4")
    return root


def pictures_in_parquet(root: Path, count: int) -> Path:
    """`count` equal episodes, a file each."""
    episode = Episode({"observation.image": FRAMES}, {"action": np.zeros((STEPS, 2))})
    write_lerobot(root, [episode], pictures=["observation.image"], episodes_per_data_file=1)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    index = {name: values * count for name, values in pq.read_table(path).to_pydict().items()}
    index |= {name: list(range(count)) for name in ("episode_index", "data/file_index")}
    pq.write_table(pa.table(index), path)
    info = root / "meta/info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "total_episodes": count}))
    first = pq.read_table(root / "data/chunk-000/file-000.parquet")
    column = first.column_names.index("episode_index")
    for number in range(count):
        rows = first.set_column(column, "episode_index", pa.array([number] * STEPS))
        pq.write_table(rows, root / f"data/chunk-000/file-{number:03d}.parquet")
    return root


def test_many_episodes_take_no_more_memory_than_few(tmp_path):
    """A tenth of what their frames would, had they been kept."""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc, which this system lacks")
    makers = {"VideoFolderSource": videos, "LeRobotSource": pictures_in_parquet}
    jobs = [
        [kind, *(str(make(tmp_path / f"{kind}{count}", count)) for count in (FEW, MANY))]
        for kind, make in makers.items()
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", MEASURE, json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    for kind, few, many in map(json.loads, done.stdout.splitlines()):
        assert many - few < 0.1 * MANY * FRAMES.nbytes / 2**20, f"{kind}, MiB: few {few:.1f}, many {many:.1f}"
