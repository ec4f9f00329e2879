"""Fixtures shared by every test: the real data when there is some, and small synthetic stores in the PushT format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.file_server import FileServer, serving
from unified_video_action.env.system_libraries import prepare_rendering
from unified_video_action.files import data_folder

with suppress(ImportError):  # a missing library is said by the tests that draw
    prepare_rendering()  # before a test imports a simulator


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data, which holds pusht/pusht.zip; the test is skipped without it."""
    if not data_folder().is_dir():
        pytest.skip(f"UVA_DATA_DIR, or {data_folder()}, is not there: no real demonstrations to read")
    return data_folder()


@pytest.fixture(scope="session")
def pusht_zip(data_dir: Path) -> Path:
    """The published PushT archive; the test is skipped without it."""
    path = data_dir / "pusht" / "pusht.zip"
    if not path.is_file():
        pytest.skip(f"{path} is missing: no real PushT demonstrations to read")
    return path


@pytest.fixture(scope="session")
def pusht_store(tmp_path_factory) -> Path:
    """A synthetic PushT store, read-only for tests: 4 episodes of 40, 33, 52 and 25 steps of 96 px uint8 frames."""
    return write_pusht_store(tmp_path_factory.mktemp("store") / "pusht.zarr")


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """make_store(name="store.zarr", **options of write_pusht_store) -> path of a store that a test may damage."""

    def make(name: str = "store.zarr", **options) -> Path:
        return write_pusht_store(tmp_path / name, **options)

    return make


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """A local HTTP server of `tmp_path`; see `serving`."""
    with serving(FileServer, tmp_path) as server:
        yield server


@pytest.fixture
def exact_products():
    """CUDA multiplies float32 matrices in float32, not in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def write_pusht_store(
    path: Path,
    lengths: tuple[int, ...] = (40, 33, 52, 25),
    image_dtype: str = "uint8",
    zarr_format: int = 2,
    chunk: int = 16,
    size: int = 96,
    seed: int = 0,
) -> Path:
    """Write episodes in the published PushT layout and return the path.

    data/img (N, size, size, 3), data/action (N, 2), data/state (N, 5: agent xy, block xy, angle), meta/episode_ends.
    The agent walks smoothly towards its actions; the block drifts; frames show both as a disk and a square.
    """
    import zarr

    rng = np.random.default_rng(seed)
    states, actions = zip(*(_walk(length, rng) for length in lengths))
    state, action = np.concatenate(states), np.concatenate(actions)
    arrays = {
        "img": np.stack([_draw(row, size) for row in state]).astype(image_dtype),
        "action": action,
        "state": state,
    }
    root = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    data, meta = root.create_group("data"), root.create_group("meta")
    for name, array in arrays.items():
        data.create_array(name, data=array, chunks=(chunk, *array.shape[1:]))
    ends = np.cumsum(lengths).astype(np.int64)
    meta.create_array("episode_ends", data=ends, chunks=ends.shape)
    return path


def _walk(length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One episode: states (length, 5) and the actions (length, 2) that pull the agent, float32 table pixels."""
    waypoints = rng.uniform(60, 452, (length // 10 + 2, 2))
    time = np.linspace(0, len(waypoints) - 1, length)
    action = np.stack([np.interp(time, np.arange(len(waypoints)), waypoints[:, k]) for k in range(2)], axis=1)
    agent = np.empty_like(action)
    agent[0] = action[0] + rng.normal(0, 10, 2)
    for step in range(1, length):
        agent[step] = 0.7 * agent[step - 1] + 0.3 * action[step - 1]
    block = rng.uniform(150, 362, 2) + np.cumsum(rng.normal(0, 1.5, (length, 2)), axis=0)
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.03, length))
    state = np.concatenate([agent, block, angle[:, None] % (2 * np.pi)], axis=1)
    return state.astype(np.float32), action.astype(np.float32)


def _draw(state: np.ndarray, size: int) -> np.ndarray:
    """A white frame (size, size, 3) uint8 with a blue disk at the agent and a tilted grey square at the block."""
    row, column = np.mgrid[:size, :size]
    x, y = (column + 0.5) * 512 / size, (row + 0.5) * 512 / size
    frame = np.full((size, size, 3), 255, np.uint8)
    dx, dy, (cos, sin) = x - state[2], y - state[3], (np.cos(state[4]), np.sin(state[4]))
    frame[(np.abs(cos * dx + sin * dy) < 50) & (np.abs(cos * dy - sin * dx) < 35)] = (119, 136, 153)
    frame[(x - state[0]) ** 2 + (y - state[1]) ** 2 < 15**2] = (65, 105, 225)
    return frame
