"""A hand-held gripper's recordings from a synthetic archive to a trained policy; the large presets compose and fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.loading import load_script
from tests.shrunk import SHRUNK, read
from unified_video_action.dataset.build import build_dataset
from unified_video_action.dataset.formats.umi import UmiStore
from unified_video_action.demos.collecting import collect
from unified_video_action.demos.umi_synthetic import (
    CAMERA_IN_GRIPPER,
    TABLE,
    TEXELS,
    CameraModel,
    Collector,
    episode,
    lit,
    trajectory,
)
from unified_video_action.policy.build import load_policy
from unified_video_action.policy.uva_transform import model_spec
from unified_video_action.poses import EndEffectorSpec, from_vector, inverse
from unified_video_action.spec import LatentShape, TaskSpec
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

CAMERA = "camera0_rgb"
SCENE = Collector(image_size=64, seconds=1.5)
SMALL = (*(line for line in SHRUNK if "env_runner" not in line and "evaluate_every" not in line), "vae.image_size=32")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("umi") / "synthetic.zarr.zip"
    collect(SCENE, "umi", 3, path, workers=1)
    return path


# -- the generator -----------------------------------------------------------------------------------------------------


def test_the_camera_sees_points_of_the_table_where_its_pose_says() -> None:
    """A red dot on a black table appears where a pinhole or equidistant camera projects it."""
    texture, point = np.zeros((TEXELS, TEXELS, 3), np.uint8), np.array([0.02, -0.03, 0.0])
    column, row = np.round((point[:2] / TABLE + 0.5) * TEXELS).astype(int)
    texture[row - 4 : row + 5, column - 4 : column + 5, 0] = 255
    for camera, view in (("pinhole", 90.0), ("fisheye", 160.0)):
        model = CameraModel(Collector(image_size=128, camera=camera, field_of_view=view))
        poses, _ = trajectory(Collector(seconds=12.0), np.random.default_rng(1))
        seen = 0
        for pose in poses[::60]:
            x, y, z = (inverse(pose @ CAMERA_IN_GRIPPER) @ [*point, 1.0])[:3]
            angle = np.arctan2(np.hypot(x, y), z)
            radius = 64 * (np.tan(angle) if camera == "pinhole" else angle / np.radians(80))  # 64 px from the middle
            centre = 64 + radius * np.array([x, y]) / np.hypot(x, y)
            if z < 0.05 or not (4 < centre).all() or not (centre < [124, 75]).all():  # outside, or behind the fingers
                continue
            picture = model.picture(texture, pose, 0.08).astype(int)
            red = np.argwhere(picture[..., 0] - picture[..., 1] > 40)
            nearest = np.linalg.norm(red[:, ::-1] + 0.5 - centre, axis=1).min(initial=np.inf)  # the table repeats
            assert nearest < 1.5, (camera, centre, nearest)
            seen += 1
        assert seen >= 3


def test_recordings_follow_from_their_seed() -> None:
    one, same, other = (episode(replace(SCENE, seed=seed), 1) for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one[CAMERA], other[CAMERA])
    assert not np.allclose(one["robot0_eef_pos"], other["robot0_eef_pos"])


def test_the_colour_of_light_tells_places() -> None:
    grey = np.full((TEXELS, TEXELS, 3), 120, np.uint8)
    assert np.array_equal(lit(grey, 0.0), grey)
    quarter = TEXELS // 4
    red, green, blue = np.moveaxis(lit(grey, 0.5)[quarter:-quarter, quarter:-quarter].astype(int), -1, 0)
    assert red[0, -1] - red[0, 0] == green[-1, 0] - green[0, 0] == blue[0, 0] - blue[-1, -1] == 179 - 60
    assert not red.var(axis=0).any() and not green.var(axis=1).any()
    recorded = [replace(SCENE, light=light, tables=1) for light in (0.0, 0.5)]
    white, coloured = (episode(scene, 0) for scene in recorded)
    assert np.array_equal(white["robot0_eef_pos"], coloured["robot0_eef_pos"])
    assert not np.array_equal(white[CAMERA], coloured[CAMERA])


def test_the_script_makes_an_archive(tmp_path, capsys) -> None:
    path = tmp_path / "made.zarr.zip"
    options = ["--task", "umi", "--output", str(path), "-n", "1", "--workers", "1", "--seconds", "0.5", "--fps", "20"]
    options += ["--image-size", "32", "--codec", "jpeg", "--camera", "fisheye", "--seed", "3"]
    load_script("collect_demos").main(options)
    assert len(UmiStore(path, [CAMERA])) == 10
    for bad, message in (
        (options, "exists already"),
        (["--task", "umi", "--output", "x.zarr", "--fps", "0.1"], "fps=0.1: expected 1"),
        (["--task", "umi", "--output", "x.zarr", "--light", "2"], "light=2.0: expected 0 to 1"),
    ):
        with pytest.raises(SystemExit):
            load_script("collect_demos").main(bad)
        assert message in capsys.readouterr().err


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(archive, tmp_path_factory) -> tuple[dict, Path]:
    """Configuration and folder of a run of three steps in all task modes."""
    folder = tmp_path_factory.mktemp("run") / "run"
    data_options = (f"task.dataset.sources.path={archive}", f"data.cache_dir={folder.parent}", f"output_dir={folder}")
    options = ("task.dataset.val_ratio=0.4", "task.dataset.sources.mask=mirrors")
    config = read("uva_umi_joint_mini", *SMALL, *data_options, *options)
    TrainUnifiedVideoActionWorkspace(OmegaConf.create(config)).run()
    return config, folder


def test_what_is_trained_acts_and_says_how_frames_were_reached(trained) -> None:
    config, folder = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = {name: value for line in lines for name, value in line.items()}
    wanted = {"train/action", "train/video", "train/proprio", "validation/action_error"}
    assert wanted | {"validation/inverse_dynamics/action"} <= measured.keys()
    assert all(np.isfinite(value) for value in measured.values())
    assert (folder / "prediction_grids" / "step_00000003.png").is_file()

    policy = load_policy(folder / "checkpoints" / "latest", weights="model")
    dataset = build_dataset(config)
    batch = dataset.validation().__getitems__([(0, 0), (30, 0)])
    observation = {**batch["history"], **batch["low_dim"]}
    acted = policy.predict_action(observation, torch.Generator().manual_seed(0))["action_pred"]
    found = policy.predict_inverse_dynamics(observation, batch["future"], True, torch.Generator().manual_seed(0))
    assert acted.shape == found["action_pred"].shape == (2, 16, 10) and acted.isfinite().all()
    end_effector, now = EndEffectorSpec(**config["task"]["end_effector"]), np.stack([np.eye(4)] * 2)
    truth, widths = end_effector.targets(batch["action"].numpy(), now)
    start = batch["index"].numpy()
    store, row = dataset.tables[0].store, dataset.validation()._now[start]
    vectors = np.concatenate([store.vectors[f"robot0_eef_{n}"] for n in ("pos", "rot_axis_angle")], axis=1)
    later = from_vector(vectors[row + 3])  # the first action is a step of three rows later
    assert np.allclose(truth[:, 0], inverse(from_vector(vectors[row])) @ later, atol=1e-5)
    assert np.allclose(widths[:, 0], store.vectors["robot0_gripper_width"][row + 3, 0], atol=1e-6)


def test_the_presets_of_the_paper_build_their_data_and_sizes(archive) -> None:
    ours = [f"task.dataset.sources.{name}.path={archive}" for name in ("cup", "towel", "mouse")]
    for name, paths in {"uva_umi": [f"task.dataset.sources.path={archive}"], "uva_umi_multi": ours}.items():
        config = read(name, *paths, "task.shape_meta.obs.camera0_rgb.shape=[3,64,64]", "vae.weights=random")
        dataset = build_dataset(config)
        sample = dataset[(10, 0)]
        spec = model_spec(TaskSpec.parse(config["task"]), LatentShape(16, 16, 16))
        assert sample["action"].shape == (spec.horizon.actions, spec.action_dim) == (16, 10)
        states = torch.cat(list(sample["low_dim"].values()), dim=-1)
        assert states.shape == (spec.proprio_steps, spec.proprio_dim) == (4, 16)
        assert sum(v.shape[1] for v in sample["future_low_dim"].values()) == spec.proprio_output_dim == 6
        assert dataset.fit_normalizer().scale("action").tolist() == [1] * 10
        assert config["trainer"]["precision"] == "bf16"
        quotas = config["model"]["mode_mix"]["quotas"]
        assert {mode for mode, share in quotas.items() if share} == {"policy", "policy_and_video"}
    assert len(dataset.instructions) == 3 and spec.text_dim == 512
    frames = [dataset[(centre, 3)]["history"][CAMERA][0, :, 44, 2] for centre in (10, len(dataset) - 10)]
    assert frames[0].max() < frames[1].max(), "the mirrors of the cups' gripper are black"
    counts = np.bincount(dataset._table)
    assert (counts == counts[0]).all()


def test_diffusion_policy_of_umi_trains_and_acts(archive, tmp_path) -> None:
    small = ("policy.encoder=test_vit", "policy.pretrained=false", "policy.crop=60", "policy.image_size=160")
    small += ("policy.widths=[16,32]", "policy.step_embed=16", "policy.sampler=ddim2", "training.batch_size=4")
    small += ("training.steps=2", "trainer.validate_every=2", "trainer.validation_windows=2", "trainer.num_workers=0")
    data_options = (
        f"task.dataset.sources.path={archive}",
        f"data.cache_dir={tmp_path}",
        f"output_dir={tmp_path / 'run'}",
    )
    shapes = ("task.shape_meta.obs.camera0_rgb.shape=[3,64,64]", "task.dataset.val_ratio=0.4")
    config = read("dp_umi", *small, *data_options, *shapes)
    TrainUnifiedVideoActionWorkspace(OmegaConf.create(config)).run()
    policy = load_policy(tmp_path / "run/checkpoints/latest", weights="model")
    batch = build_dataset(config).validation().__getitems__([(0, 0), (30, 0)])
    observation = {**batch["history"], **batch["low_dim"]}
    acted = policy.predict_action(observation, torch.Generator().manual_seed(0))["action_pred"]
    assert batch["history"][CAMERA].shape[1] == 2 and acted.shape == (2, 16, 10) and acted.isfinite().all()


def test_errors_of_camera_motion_by_the_script(trained, archive, tmp_path, monkeypatch, capsys) -> None:
    """On the run's held-out episodes, and on an archive beside other methods: one right, one that finds no motion."""
    _, folder = trained
    script = load_script("evaluate_inverse_dynamics")

    def measure(*options: str) -> dict:
        figures = tmp_path / "errors.json"
        fixed = ["evaluate", "--checkpoint", str(folder / "checkpoints" / "latest"), "--json", str(figures)]
        monkeypatch.setattr("sys.argv", [*fixed, "--windows", "6", "--sampler", "ddim2", *options])
        script.main()
        return json.loads(figures.read_text())["errors"]

    own = measure()
    assert set(own) == {"model", "still"} and own["model"]["position_cm"]["windows"] == 6
    resting = tmp_path / "resting.zarr.zip"
    collect(replace(SCENE, speed=0.0, turning=0.0), "umi", 3, resting, workers=1)
    all_of_it = measure("--data", str(archive), "--other", f"resting={resting}", f"--other=same={archive}")
    assert all_of_it["same"]["position_cm"]["value"] < 1e-4 and all_of_it["same"]["rotation_deg"]["value"] < 1e-2
    for part, row in all_of_it["still"].items():  # a method that finds no motion is as wrong as standing still
        assert row["value"] == pytest.approx(all_of_it["resting"][part]["value"], rel=1e-3) and row["value"] > 0.5
    with pytest.raises(SystemExit):
        measure(f"--other=same={archive}")
    assert "--other compares archives with --data" in capsys.readouterr().err
