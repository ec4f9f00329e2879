"""LIBERO's assets, its import, its suites and start states: found, unpacked once, and without a question."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.libero_recording import LIBERO, libero_cache  # noqa: F401

pytest.importorskip("libero", reason=LIBERO)

from unified_video_action.compat.zip_archive import read_array
from unified_video_action.env.libero.env import LiberoEnv
from unified_video_action.env.libero.installation import PARTS, cache_folder, find_assets

ROOT = Path(__file__).parents[2]
FRESH = """
import sys
from unified_video_action.env.libero.env import LiberoEnv
from unified_video_action.env.libero.installation import load
env = LiberoEnv(cache_dir=sys.argv[1])
envs = load(env.assets, env.cache)
assert envs.bddl_base_domain.get_assets_path() == str(env.assets)
assert "torch" not in sys.modules
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder that looks like assets."""
    for part in PARTS:
        (tmp_path / "small" / part).mkdir(parents=True)
        (tmp_path / "small" / part / "a.xml").write_text("<mujoco/>")
    return tmp_path / "small"


def pack(folder: Path, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        for part in sorted(folder.iterdir()):
            tar.add(part, part.name)
    return archive


def unpack(job: tuple[Path, Path]) -> Path:
    return find_assets(str(job[0]), job[1])


def test_a_fresh_process_asks_nothing_and_leaves_the_home_alone(libero_cache, data_dir, tmp_path):  # noqa: F811
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("LIBERO_CONFIG_PATH", "XDG_CACHE_HOME")}
    environment = {**kept, "HOME": str(home), "UVA_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)}
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", FRESH, libero_cache], env=environment, **options)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.iterdir()) == []


def test_assets_are_a_folder_or_an_archive_that_processes_unpack_once(small: Path, tmp_path: Path, monkeypatch):
    cache = tmp_path / "cache"
    assert find_assets(str(small), cache) == small
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "assets").symlink_to(small)
    assert find_assets(str(tmp_path / "beside"), cache) == tmp_path / "beside" / "assets" and not cache.exists()
    (small / "scenes" / "big").write_bytes(os.urandom(2**20))
    archive = pack(small, tmp_path / "data" / "libero" / "libero10_assets.tar.gz")
    with multiprocessing.get_context("fork").Pool(3) as pool:
        (unpacked,) = set(pool.map(unpack, [(archive, cache)] * 3))
    assert [path for path in cache.iterdir() if path.is_dir()] == [unpacked]
    assert (unpacked / "scenes" / "big").stat().st_size == 2**20
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path / "data"))
    assert find_assets(None, cache) == find_assets("$UVA_DATA_DIR/libero", cache) == unpacked
    archive.write_bytes(archive.read_bytes() + b"\0")
    assert find_assets(str(archive), cache) != unpacked  # another archive
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "unified_video_action" / "libero"


def test_missing_assets_are_named_with_the_remedy(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = tmp_path / "cache"
    broken = pack(small, tmp_path / "broken.tar.gz")
    broken.write_bytes(broken.read_bytes()[:-40])
    for path, error, message in (
        (tmp_path / "nowhere", FileNotFoundError, r"nowhere does not exist\. .*task\.env\.assets=PATH"),
        (broken, ValueError, r"broken\.tar\.gz cannot be unpacked"),
    ):
        with pytest.raises(error, match=message):
            LiberoEnv(assets=str(path), cache_dir=str(cache))
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .*task\.env\.assets=PATH.*huggingface\.co"):
        find_assets(None, cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]  # nothing half done
    env = LiberoEnv(tasks=[8], assets=str(small), cache_dir=str(cache), observe_images=False)
    with pytest.raises(FileNotFoundError, match=r"KITCHEN_SCENE8.* cannot be built from .*small: .*task\.env\.assets"):
        env.reset(seed=0)


def test_seeds_run_evenly_through_tasks_and_states(libero_cache):  # noqa: F811
    env = LiberoEnv(cache_dir=libero_cache)
    starts = [env.start_of(seed) for seed in range(100_000, 100_500)]
    assert len(set(starts)) == 500 and env.start_of(100_500) == starts[0] == (0, 0)
    tasks = Counter(task for task, _ in starts[:123])
    assert max(tasks.values()) - min(tasks[task] for task in range(10)) <= 1
    some = LiberoEnv(tasks=[4, 2], cache_dir=libero_cache)
    assert [task.name[:20] for task in some.tasks] == ["LIVING_ROOM_SCENE5_p", "KITCHEN_SCENE3_turn_"]
    assert [some.start_of(seed) for seed in (0, 1, 2, 99, 100)] == [(0, 0), (1, 0), (0, 1), (1, 49), (0, 0)]


class Program:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_start_states_that_want_to_run_something_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    wanted = np.asfortranarray(np.arange(12, dtype=">f4").reshape(3, 4))
    for content, message in (
        (pickle.dumps(Program(), protocol=2), "it asks for posix.system"),
        (pickle.dumps(np.array([Program()], object), protocol=2), "not a stored array of numbers"),
        (pickle.dumps([1, 2], protocol=2), "it holds a list"),
        (pickle.dumps(np.arange(4.0), protocol=2)[:-9], "not a stored array of numbers"),
        (pickle.dumps(wanted, protocol=2), None),
    ):
        with zipfile.ZipFile("a.pruned_init", "w") as archive:
            archive.writestr("archive/data.pkl", content)
        if message is None:
            np.testing.assert_array_equal(read_array(Path("a.pruned_init")), wanted)
        else:
            with pytest.raises(ValueError, match=message):
                read_array(Path("a.pruned_init"))
    Path("text").write_text("no zip")
    with pytest.raises(ValueError, match="text is not a stored array"):
        read_array(Path("text"))
    assert not Path("ran").exists()
