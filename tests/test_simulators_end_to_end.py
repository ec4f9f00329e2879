"""Each simulator of robots: demonstrations become training data, a policy trains on them, acts, and imagines."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.dataset.recordings import Episode, write_lerobot
from tests.libero_recording import TASK, libero_cache, record, write_published  # noqa: F401
from tests.lift_demos import lift_images  # noqa: F401
from tests.loading import load_script
from tests.shrunk import SHRUNK, read
from unified_video_action.dataset.build import build_dataset
from unified_video_action.env_runner.preparation import build_runner
from unified_video_action.env_runner.simulators import build_env
from unified_video_action.policy.build import load_policy
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

PAIRS = ("red_in_red", "red_in_green", "green_in_red", "green_in_green")
LIFT_VIEWS = ("agentview_image", "robot0_eye_in_hand_image")
LIBERO_VIEWS = ("agentview_rgb", "eye_in_hand_rgb")
INSTRUCTION = "put both moka pots on the stove"
SMALL = {  # configuration and overrides of each task
    "block_push": (
        "uva_block_push_mini",
        *("task.shape_meta.obs.image.shape=[3,48,64]", "task.env.image_size=48", "task.dataset.val_ratio=0.34"),
        *("vae=pusht_tiny", "vae.image_size=48", "model.patch_size=1"),
    ),
    "lift": (
        "uva_lift",
        *(f"task.shape_meta.obs.{view}.shape=[3,64,64]" for view in LIFT_VIEWS),
        *("task.shape_meta.proprio_output_dim=9", "task.env.image_size=64", "task.dataset.val_ratio=0.4"),
        *("vae.image_size=32", "training=joint"),
    ),
    "libero": (
        *("uva_libero10_mini", "task=libero10_wrist"),
        *(f"task.shape_meta.obs.{view}.shape=[3,48,48]" for view in LIBERO_VIEWS),
        *("task.shape_meta.text_dim=24", "task.env.image_size=48", f"task.env.tasks=[{TASK}]", "task.env.samples=0"),
        *("task.dataset.val_ratio=0.5", "task.dataset.pad_before=12", "task.dataset.pad_after=12"),
        *("vae.image_size=48", "trainer.prediction_grid_every=null"),
    ),
}


def need(package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed; add the simulators with: make sims")


def block_push_places(request, folder: Path) -> list[str]:
    """Three episodes by the script that users call."""
    arguments = ["--task", "block_push", "-n", "3", "--workers", "1", "--image-size", "48"]
    load_script("collect_demos").main([*arguments, "--output", str(folder / "demos.zarr.zip")])
    return [f"task.dataset.sources.path={folder}/demos.zarr.zip"]


def lift_places(request, folder: Path) -> list[str]:
    return [f"task.dataset.sources.path={request.getfixturevalue('lift_images')}"]


def libero_places(request, folder: Path) -> list[str]:
    """Two short demonstrations of one task, converted from the published layout; a narrow CLIP with the real words."""
    import h5py
    from open_clip import CLIP
    from safetensors.torch import save_file

    from scripts import replay_libero
    from unified_video_action.env.libero.env import LiberoEnv

    cache = request.getfixturevalue("libero_cache")
    env = LiberoEnv(tasks=[TASK], observe_images=False, samples=0, cache_dir=cache)
    env.reset(seed=0)
    recordings = [record(env._scene, 14, seed=seed) for seed in (0, 1)]
    published = write_published(folder / "published.hdf5", env.tasks[0], recordings)
    (folder / "absolute").mkdir()
    with h5py.File(folder / "absolute" / "pots.hdf5", "w") as file:
        settings = replay_libero.Settings(48, keep_failures=True, demonstrations=None)
        replay_libero.write(file.create_group("data"), published, env._scene, settings)
    env.close()
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    clip = CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    save_file(clip.state_dict(), folder / "clip.safetensors")
    data_options = {"task.dataset.sources.path": folder / "absolute", "text.weights": folder / "clip.safetensors"}
    return [f"{key}={value}" for key, value in {**data_options, "task.env.cache_dir": cache}.items()]


@pytest.fixture(scope="module", params=SMALL)
def trained(request, tmp_path_factory) -> tuple[str, dict, Path]:
    """A task, its configuration, and the folder of a run of three steps that evaluates at its end."""
    task = request.param
    package, prepare, _ = TASKS[task]
    need(package)
    folder = tmp_path_factory.mktemp(task)
    data_options = prepare(request, folder)
    name, *overrides = SMALL[task]
    config = read(name, *SHRUNK, *overrides, *data_options, f"data.cache_dir={folder}", f"output_dir={folder}/run")
    TrainUnifiedVideoActionWorkspace(OmegaConf.create(config)).run()
    return task, config, folder / "run"


def test_a_policy_trains_acts_and_imagines(trained, tmp_path: Path):
    task, config, run = trained
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = {name: value for line in lines for name, value in line.items()}
    wanted = {"train/action", "train/video", "validation/action_error", "evaluation/mean_score"}
    wanted |= {f"evaluation/mean_max_{pair}" for pair in PAIRS} if task == "block_push" else set()
    wanted |= {"train/proprio"} if task == "lift" else set()
    assert wanted <= measured.keys() and all(np.isfinite(value) for value in measured.values())
    assert (run / "prediction_grids" / "step_00000003.png").is_file() == (task != "libero")
    results = json.loads((run / "evaluation" / "step_00000003" / "results.json").read_text())
    assert results["metrics"]["crashed"] == 0 and [episode["steps"] for episode in results["episodes"]] == [8]
    policy = load_policy(run / "checkpoints" / "latest", weights="model")
    TASKS[task][2](policy, config, tmp_path)


def observe(config: dict, rows: tuple[int, int]) -> dict[str, torch.Tensor]:
    dataset = build_dataset(config)
    dataset.use_frames()
    return dataset.__getitems__([(row, 0) for row in rows])


def check_block_push(policy, config: dict, folder: Path) -> None:
    """Forward dynamics answers to actions; a video shows frames that are not square."""
    batch = observe(config, (0, 60))
    observation = {**batch["history"], **batch["low_dim"]}

    def imagine(actions: torch.Tensor) -> dict[str, torch.Tensor]:
        return policy.predict_forward_dynamics(observation, actions, torch.Generator().manual_seed(0))

    made = imagine(batch["action"])
    assert made["frames"].shape == (2, 4, 3, 48, 48) and made["frames"].dtype == torch.uint8  # the codec's square
    assert torch.equal(imagine(batch["action"])["latents"], made["latents"])
    assert (imagine(batch["action"] + 0.1)["latents"] - made["latents"]).abs().max() > 1e-6
    build_runner(config).run(policy, folder / "out", videos=1, progress=False)
    (video,) = (folder / "out" / "videos").iterdir()
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 9
    assert ((frames[0][..., 0] > 120) & (frames[0][..., 1:] < 80).all(axis=-1)).any(), "the red block is in the picture"


def check_lift(policy, config: dict, folder: Path) -> None:
    """Both views are seen, and imagined."""
    batch = observe(config, (0, 30))
    observation = {**batch["history"], **batch["low_dim"]}

    def imagine(observation: dict) -> dict[str, torch.Tensor]:
        return policy.predict_video(observation, torch.Generator().manual_seed(0))

    made = imagine(observation)
    main, wrist = (made["views"][view] for view in LIFT_VIEWS)
    for view in (main, wrist):
        assert view.shape == (2, 4, 3, 32, 32) and view.dtype == torch.uint8
    assert (main != wrist).any() and torch.equal(main, made["frames"])
    black = torch.zeros_like(observation[LIFT_VIEWS[1]])
    assert (imagine({**observation, LIFT_VIEWS[1]: black})["latents"] != made["latents"]).any()
    both = policy.predict_action_and_video(observation, torch.Generator().manual_seed(0))
    assert both["views"].keys() == set(LIFT_VIEWS) and both["action"].shape == (2, 8, 10)
    with pytest.raises(ValueError, match=f"observation '{LIFT_VIEWS[1]}' is missing"):
        imagine({name: value for name, value in observation.items() if name != LIFT_VIEWS[1]})


def check_libero(policy, config: dict, folder: Path) -> None:
    """A checkpoint knows the instructions that it was trained on."""
    policy.text.weights = "nowhere"
    assert policy.text.encode([INSTRUCTION]).shape == (1, 24)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        policy.text.encode(["fold the shirt"])


TASKS = {  # the package that it needs, what makes its demonstrations, and what its policy is asked
    "block_push": ("pybullet", block_push_places, check_block_push),
    "lift": ("robosuite", lift_places, check_lift),
    "libero": ("libero", libero_places, check_libero),
}


@pytest.mark.parametrize(
    ("package", "name", "overrides"),
    [
        ("pybullet", "uva_block_push", ()),
        ("pybullet", "uva_block_push", ("task=block_push_240",)),
        ("pybullet", "uva_block_push_mini", ()),
        ("robosuite", "uva_toolhang", ()),
        ("robosuite", "uva_lift", ()),
        ("libero", "uva_libero10", ()),
        ("libero", "uva_libero10", ("task=libero10_wrist",)),
        ("libero", "uva_libero10_mini", ()),
    ],
)
def test_configurations_agree_with_the_simulator(package: str, name: str, overrides: tuple, request):
    need(package)
    config = read(name, *overrides)
    task, runner = config["task"], config["task"]["env_runner"]
    cache = {"cache_dir": request.getfixturevalue("libero_cache")} if package == "libero" else {}
    env = build_env({**task["env"], **cache})
    for key, entry in task["shape_meta"]["obs"].items():
        shape = env.observation_space[key].shape
        assert entry["shape"] == [shape[2], shape[0], shape[1]] if entry["type"] == "rgb" else [*shape]
    assert task["shape_meta"]["action"]["shape"] == [*env.action_space.shape]
    if package == "pybullet":
        assert runner["metrics"] == list(PAIRS) and set(PAIRS) <= env.reset(seed=0)[1].keys()
    if package == "libero":
        assert runner["n_episodes"] == 500 == len({env.start_of(seed) for seed in range(runner["start_seed"], 500)})
        assert runner["fps"] == env.metadata["render_fps"]
    env.close()


def test_data_in_lerobots_format_goes_with_relative_control(request, tmp_path: Path):
    need("libero")
    random, camera = np.random.default_rng(0), "observation.images.image"
    tasks = (INSTRUCTION, "turn on the stove and put the moka pot on it")
    episodes = [
        Episode(
            {camera: random.integers(0, 256, (40, 256, 256, 3), dtype=np.uint8)},
            {"action": random.uniform(-1, 1, (40, 7)), "observation.state": np.zeros((40, 8))},
            task,
        )
        for task in tasks
    ]
    write_lerobot(tmp_path / "data", episodes, pictures=[camera])
    cache = request.getfixturevalue("libero_cache")
    data_options = (f"task.dataset.sources.path={tmp_path}/data", f"task.env.cache_dir={cache}")
    config = read("uva_libero10_mini", "task=libero10_lerobot", "task.dataset.val_ratio=0", *data_options)
    env, sample = build_env(config["task"]["env"]), observe(config, (0, 1))
    assert env.mirrored and env.action_space.shape == (7,) == tuple(config["task"]["shape_meta"]["action"]["shape"])
    assert {task.instruction for task in env.tasks} > set(tasks)
    assert sample["action"].shape == (2, 16, 7) and sample["history"]["agentview_rgb"].shape == (2, 4, 3, 256, 256)
    assert list(env.observation_space["agentview_rgb"].shape) == [256, 256, 3]
