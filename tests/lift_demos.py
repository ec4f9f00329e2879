"""What Lift's tests share: files of a few scripted episodes, made once in a session."""

from pathlib import Path

import numpy as np
import pytest

from tests.loading import load_script

LIFT = "robosuite is not installed; add the simulators with: make sims"
SIZE = 64  # pixels
CAMERAS = ("agentview", "robot0_eye_in_hand")


@pytest.fixture(scope="session")
def lift_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes with frames of 64 px and absolute actions; read-only for tests."""
    return _collected(tmp_path_factory, "images.hdf5", 2, "--image-size", str(SIZE))


@pytest.fixture(scope="session")
def lift_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes without frames, whose actions are steps; read-only for tests."""
    return _collected(tmp_path_factory, "steps.hdf5", 2, "--image-size", "0", "--delta")


def _collected(tmp_path_factory: pytest.TempPathFactory, name: str, count: int, *options: str) -> Path:
    path = tmp_path_factory.getbasetemp() / "lift" / name
    if not path.exists():  # every module that imports a fixture has it again
        arguments = ["--task", "lift", "-n", str(count), "--output", str(path), "--workers", "1", *options]
        load_script("collect_demos").main(arguments)
    return path


def read_demo(path: Path, demo: str = "demo_0") -> dict[str, np.ndarray | str]:
    """Everything of a demonstration: states, actions, obs/<name>, and model."""
    import h5py

    with h5py.File(path) as file:
        group = file["data"][demo]
        found = {name: group[name][:] for name in ("states", "actions", "rewards", "dones")}
        found |= {f"obs/{name}": dataset[:] for name, dataset in group["obs"].items()}
        return found | {"model": group.attrs["model_file"]}
