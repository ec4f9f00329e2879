"""What LIBERO's tests share: its assets, a state in which a task is solved, and files as LIBERO publishes them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

TASK = 8  # of libero_10: both moka pots on the stove; its scene is built faster than others
LIBERO = "LIBERO is not installed; add the simulators with: make sims"


@pytest.fixture(scope="session")
def libero_cache(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache folder for LIBERO's assets, which lie in $UVA_DATA_DIR; the test is skipped without them."""
    archive = data_dir / "libero" / "libero10_assets.tar.gz"
    if not archive.is_file():
        pytest.skip(f"{archive} is missing: UVA_DATA_DIR has no assets of LIBERO")
    return str(tmp_path_factory.getbasetemp() / "libero_cache")


def solved_state(scene) -> np.ndarray:
    """The scene's state with both moka pots a little above the stove: the task is solved once they have settled."""
    sim, state = scene._env.sim, scene.state
    burner = sim.data.get_site_xpos("flat_stove_1_burner")
    for joint, side in (("moka_pot_1_joint0", -0.04), ("moka_pot_2_joint0", 0.04)):
        start = 1 + sim.model.get_joint_qpos_addr(joint)[0]
        state[start : start + 3] = burner + [0, side, 0.05]
    return state


def record(scene, steps: int, state: np.ndarray | None = None, seed: int = 0) -> dict:
    """Play smooth random relative actions (T, 7): `states` before `positions` (T, 3) after each, and the `model`."""
    scene.relative = True
    if state is not None:
        scene.show(state)
    phase = np.random.default_rng(seed).uniform(0, 6, 6)
    found = {"actions": [], "states": [], "positions": [], "model": scene._env.sim.model.get_xml()}
    for step in range(steps):
        turn = 0.0 if step % 5 == 0 else 1.0  # steps without a turn are a case of their own
        arm = 0.6 * np.sin(phase + step / 5) * [1, 1, 1, turn, turn, turn]
        action = np.array([*arm, -1.0 if step < steps // 2 else 1.0])
        found["actions"].append(action)
        found["states"].append(scene.state)
        scene.step(action)
        found["positions"].append(scene.end_effector_pose()[0])
    return {name: value if isinstance(value, str) else np.stack(value) for name, value in found.items()}


def write_published(path: Path, task, recordings: Sequence[dict]) -> Path:
    """Write recordings in the layout of LIBERO's published files (with frames of no meaning)."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        bddl = f"libero/bddl_files/libero_10/{task.name}.bddl"
        problem = {"problem_name": "libero", "language_instruction": task.instruction, "domain_name": "robosuite"}
        arguments = {"type": 1, "env_name": "Libero", "problem_name": "libero", "bddl_file": bddl, "env_kwargs": {}}
        attributes = {"problem_info": json.dumps(problem), "env_args": json.dumps(arguments)}
        data.attrs.update({"bddl_file_name": bddl, **attributes})
        for number, recording in enumerate(recordings):
            group, length = data.create_group(f"demo_{number}"), len(recording["actions"])
            group.attrs.update({"num_samples": length, "model_file": recording["model"]})
            group["actions"], group["states"] = recording["actions"], recording["states"]
            group["robot_states"] = np.zeros((length, 9))
            for camera in ("agentview_rgb", "eye_in_hand_rgb"):
                group[f"obs/{camera}"] = np.zeros((length, 128, 128, 3), np.uint8)
    return path
