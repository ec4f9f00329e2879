"""LIBERO from published demonstrations to a trained policy that follows instructions, and its result for each task."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from open_clip import CLIP
from safetensors.torch import save_file

from tests.dataset.recordings import Episode, write_lerobot
from tests.libero_recording import LIBERO, TASK, libero_cache, record, write_published  # noqa: F401
from tests.shrunk import SHRUNK, read

pytest.importorskip("libero", reason=LIBERO)
import h5py

from scripts import replay_libero
from unified_video_action.dataset.build import build_dataset
from unified_video_action.env.libero.env import LiberoEnv
from unified_video_action.env_runner.simulators import build_env
from unified_video_action.policy.build import load_policy
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

SIZE, WIDTH = 48, 24
NAME = "KITCHEN_SCENE8_put_both_moka_pots_on_the_stove"
SMALL = (
    *SHRUNK,
    "task=libero10_wrist",
    f"task.shape_meta.obs.agentview_rgb.shape=[3,{SIZE},{SIZE}]",
    f"task.shape_meta.obs.eye_in_hand_rgb.shape=[3,{SIZE},{SIZE}]",
    f"task.shape_meta.text_dim={WIDTH}",
    f"task.env.image_size={SIZE}",
    f"task.env.tasks=[{TASK}]",
    "task.env.samples=0",
    "task.dataset.val_ratio=0.5",
    "task.dataset.pad_before=12",
    "task.dataset.pad_after=12",
    f"vae.image_size={SIZE}",
    "trainer.sheet_every=null",
    "task.env_runner.n_episodes=2",
    "task.env_runner.max_steps=4",
)


@pytest.fixture(scope="module")
def clip_weights(tmp_path_factory) -> Path:
    """CLIP with a narrow text tower and the real vocabulary."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file(CLIP(embed_dim=WIDTH, vision_cfg=vision, text_cfg=text, quick_gelu=True).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def demonstrations(libero_cache, tmp_path_factory) -> Path:  # noqa: F811
    """A folder with two short demonstrations of one task, converted from the published layout."""
    folder = tmp_path_factory.mktemp("libero")
    env = LiberoEnv(tasks=[TASK], observe_images=False, samples=0, cache_dir=libero_cache)
    env.reset(seed=0)
    scene = env._scene
    recordings = [record(scene, 14, seed=seed) for seed in (0, 1)]
    published = write_published(folder / "published.hdf5", scene.task, recordings)
    (folder / "absolute").mkdir()
    with h5py.File(folder / "absolute" / "pots.hdf5", "w") as file:
        settings = replay_libero.Settings(SIZE, keep_failures=True, demonstrations=None)
        replay_libero.write(file.create_group("data"), published, scene, settings)
    env.close()
    return folder / "absolute"


@pytest.fixture(scope="module")
def trained(demonstrations, clip_weights, libero_cache, tmp_path_factory) -> Path:  # noqa: F811
    """Folder of a run of three steps that evaluates at its end."""
    folder = tmp_path_factory.mktemp("run") / "run"
    places = (
        f"task.dataset.sources.path={demonstrations}",
        f"text.weights={clip_weights}",
        f"task.env.cache_dir={libero_cache}",
        f"data.cache_dir={folder.parent}",
        f"output_dir={folder}",
    )
    TrainUnifiedVideoActionWorkspace(OmegaConf.create(read("uva_libero10_mini", *SMALL, *places))).run()
    return folder


def test_a_policy_trains_and_is_scored_by_task(trained: Path):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    measured = {name: value for line in lines for name, value in line.items()}
    assert {"train/action", "train/video", "validation/action_error", "evaluation/mean_score"} <= measured.keys()
    assert all(np.isfinite(value) for value in measured.values())
    results = json.loads((trained / "evaluation" / "step_00000003" / "results.json").read_text())
    assert results["metrics"]["crashed"] == 0 and [episode["steps"] for episode in results["episodes"]] == [4, 4]
    assert NAME in json.dumps(results)


def test_a_checkpoint_knows_its_instructions_and_follows_them(trained: Path):
    policy = load_policy(trained / "checkpoints" / "latest", weights="model")
    features = policy.text.encode(["put both moka pots on the stove"])
    assert features.shape == (1, WIDTH)
    policy.text.weights = "nowhere"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        policy.text.encode(["fold the shirt"])


def test_without_weights_or_data_the_run_stops(demonstrations, tmp_path):
    places = (f"output_dir={tmp_path}/run", f"data.cache_dir={tmp_path}", "trainer.evaluate_every=null")
    data = f"task.dataset.sources.path={demonstrations}"
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors are missing.*text\.weights"):
        config = read("uva_libero10_mini", *SMALL, *places, data, "text.weights=none.safetensors")
        TrainUnifiedVideoActionWorkspace(OmegaConf.create(config))
    config = read("uva_libero10_mini", *SMALL, *places, f"task.dataset.sources.path={tmp_path}/none")
    with pytest.raises(FileNotFoundError, match="none: no such file or folder"):
        TrainUnifiedVideoActionWorkspace(OmegaConf.create(config))


@pytest.mark.parametrize("name", ["uva_libero10", "uva_libero10_mini"])
@pytest.mark.parametrize("task", ["libero10", "libero10_wrist"])
def test_configurations_agree_with_the_simulator(name: str, task: str, libero_cache):  # noqa: F811
    config = read(name, f"task={task}")
    env = build_env({**config["task"]["env"], "cache_dir": libero_cache})
    spaces = env.observation_space
    for key, entry in config["task"]["shape_meta"]["obs"].items():
        shape = spaces[key].shape
        assert entry["shape"] == [shape[2], shape[0], shape[1]] if entry["type"] == "rgb" else [*shape]
    assert config["task"]["shape_meta"]["action"]["shape"] == [*env.action_space.shape]
    runner = config["task"]["env_runner"]
    assert runner["n_episodes"] == 500 == len({env.place(seed) for seed in range(runner["start_seed"], 500)})
    assert runner["max_steps"] == 500 and runner["fps"] == env.metadata["render_fps"]
    assert config["text"]["tokens"] == 30 and config["task"]["shape_meta"]["text_dim"] == 512
    assert config["task"]["dataset"]["raw_dims"]["action"] == [3, 4, 5, 6, 7, 8, 9]


def test_data_in_lerobots_format_goes_with_relative_control(libero_cache, tmp_path):  # noqa: F811
    random = np.random.default_rng(0)
    tasks = ("put both moka pots on the stove", "turn on the stove and put the moka pot on it")
    episodes = [
        Episode(
            {"observation.images.image": random.integers(0, 256, (40, 256, 256, 3), dtype=np.uint8)},
            {"action": random.uniform(-1, 1, (40, 7)), "observation.state": np.zeros((40, 8))},
            task,
        )
        for task in tasks
    ]
    write_lerobot(tmp_path / "data", episodes, pictures=["observation.images.image"])
    places = (f"task.dataset.sources.path={tmp_path}/data", f"task.env.cache_dir={libero_cache}")
    config = read("uva_libero10_mini", "task=libero10_lerobot", "task.dataset.val_ratio=0", *places)
    dataset = build_dataset(config)
    assert dataset.instructions == tasks
    env = build_env(config["task"]["env"])
    assert env.mirrored and env.action_space.shape == (7,) == tuple(config["task"]["shape_meta"]["action"]["shape"])
    assert {task.instruction for task in env.tasks} > set(tasks)
    dataset.use_frames()
    sample = dataset[0, 0]
    assert sample["action"].shape == (16, 7)
    assert list(env.observation_space["agentview_rgb"].shape) == [256, 256, 3]
    assert sample["history"]["agentview_rgb"].shape == (4, 3, 256, 256)
