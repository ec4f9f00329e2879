"""Block pushing from demonstrations to a trained policy, its rollout and its forward model, with 4:3 frames."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.loading import load_script
from tests.shrunk import SHRUNK, read

pytest.importorskip("pybullet", reason="pybullet is not installed; add the simulators with: make sims")

from unified_video_action.dataset.build import build_dataset
from unified_video_action.env_runner.preparation import build_runner
from unified_video_action.env_runner.simulators import build_env
from unified_video_action.policy.build import load_policy
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

ROOT = Path(__file__).parents[1]
PAIRS = ("red_in_red", "red_in_green", "green_in_red", "green_in_green")
SMALL = (
    *SHRUNK,
    "task.shape_meta.obs.image.shape=[3,48,64]",
    "task.env.image_size=48",
    "task.dataset.val_ratio=0.34",
    "vae=pusht_tiny",  # the cheapest codec
    "vae.image_size=48",
    "model.patch_size=1",
)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory) -> Path:
    """Three episodes by the script that users call."""
    output = tmp_path_factory.mktemp("demos") / "demos.zarr.zip"
    arguments = ["--task", "block_push", "-n", "3", "--output", str(output), "--workers", "1", "--image-size", "48"]
    load_script("collect_demos").main(arguments)
    return output


@pytest.fixture(scope="module")
def trained(demonstrations, tmp_path_factory) -> tuple[dict, Path]:
    """Configuration and folder of a run of three steps that evaluates at its end."""
    folder = tmp_path_factory.mktemp("run") / "run"
    places = (f"task.dataset.sources.path={demonstrations}", f"data.cache_dir={folder.parent}", f"output_dir={folder}")
    config = read("uva_block_push_mini", *SMALL, *places)
    TrainUnifiedVideoActionWorkspace(OmegaConf.create(config)).run()
    return config, folder


def test_a_policy_trains_and_rolls_out(trained):
    _, folder = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = {name: value for line in lines for name, value in line.items()}
    wanted = {"train/action", "train/video", "validation/forward_dynamics/video", "validation/action_error"}
    assert wanted | {f"evaluation/mean_max_{pair}" for pair in PAIRS} <= measured.keys()
    assert all(np.isfinite(value) for value in measured.values())
    assert (folder / "sheets" / "step_00000003.png").is_file()
    results = json.loads((folder / "evaluation" / "step_00000003" / "results.json").read_text())
    assert results["metrics"]["crashed"] == 0 and results["episodes"][0]["steps"] == 8


def test_forward_dynamics_answers_to_actions(trained):
    config, folder = trained
    policy = load_policy(folder / "checkpoints" / "latest", weights="model")
    dataset = build_dataset(config)
    dataset.use_frames()
    batch = dataset.__getitems__([(0, 0), (60, 0)])
    observation = {**batch["history"], **batch["low_dim"]}

    def imagine(actions: torch.Tensor) -> dict[str, torch.Tensor]:
        return policy.predict_forward_dynamics(observation, actions, torch.Generator().manual_seed(0))

    made = imagine(batch["action"])
    assert made["frames"].shape == (2, 4, 3, 48, 48) and made["frames"].dtype == torch.uint8  # the codec's square
    torch.testing.assert_close(imagine(batch["action"])["latents"], made["latents"], rtol=0, atol=0)
    elsewhere = imagine(batch["action"] + 0.1)["latents"]
    assert (elsewhere - made["latents"]).abs().max() > 1e-6


def test_a_film_of_frames_that_are_not_square(trained, tmp_path):
    import av

    config, folder = trained
    policy = load_policy(folder / "checkpoints" / "latest")
    metrics = build_runner(config).run(policy, tmp_path / "out", films=1, progress=False)
    assert set(PAIRS) <= {name.removeprefix("mean_max_") for name in metrics}
    (film,) = (tmp_path / "out" / "films").iterdir()
    with av.open(str(film)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 9
    red = (frames[0][..., 0] > 120) & (frames[0][..., 1:] < 80).all(axis=-1)
    assert red.any()  # the red block is in the picture


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("uva_block_push", ()), ("uva_block_push", ("task=block_push_240",)), ("uva_block_push_mini", ())],
)
def test_configurations_agree_with_the_simulator(name, overrides):
    config = read(name, *overrides)
    env = build_env(config["task"]["env"])
    observation, info = env.reset(seed=0)
    env.close()
    for key, entry in config["task"]["shape_meta"]["obs"].items():
        shape = observation[key].shape
        assert entry["shape"] == [shape[2], shape[0], shape[1]] if entry["type"] == "rgb" else [*shape]
    assert config["task"]["shape_meta"]["action"]["shape"] == [*env.action_space.shape]
    assert config["task"]["env_runner"]["metrics"] == list(PAIRS) and set(PAIRS) <= info.keys()
    assert config["model"]["mode_mix"]["quotas"]["forward_dynamics"] == 1.0
