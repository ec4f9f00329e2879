"""Whole runs of a small UVA on a small store, from a composed configuration to the files they leave."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from unified_video_action.compat.checkpoint_files import listed
from unified_video_action.dataset.store import StoreError
from unified_video_action.evaluation.heads import heads_health, warnings
from unified_video_action.policy.build import load_policy
from unified_video_action.workspace import run
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

CONFIG = Path(__file__).parents[2] / "config"
SHRUNK = (
    "vae.weights=random",
    "task.dataset.val_ratio=0.25",
    "model.transformer.dim=32",
    "model.video_head.width=32",
    "model.action_head.width=32",
    "training.batch_size=6",
    "training.steps=6",
    "training.schedule.warmup_steps=2",
    "trainer.device=cpu",
    "trainer.checkpoint_every=3",
    "trainer.log_every=1",
    "trainer.validate_every=4",
    "trainer.validation_windows=5",
    "trainer.sheet_every=null",
    "trainer.tensorboard=false",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(pusht_store, cache, tmp_path):
    def make(folder: str, *overrides: str) -> DictConfig:
        places = (f"task.dataset.paths={pusht_store}", f"data.cache_dir={cache}", f"output_dir={tmp_path / folder}")
        with initialize_config_dir(str(CONFIG), version_base="1.3"):
            return compose("uva_pusht_mini", [*SHRUNK, *places, *overrides])

    return make


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_everything_a_policy_needs(tmp_path, config):
    workspace = TrainUnifiedVideoActionWorkspace(
        config("run", "trainer.sheet_every=6", "trainer.evaluate_every=6", "task.env_runner.n_episodes=2",
               "task.env_runner.n_envs=1", "task.env_runner.max_steps=8", "policy.sampler=ddim2")
    )  # fmt: skip
    workspace.run()
    folder = tmp_path / "run"
    measured = {name: value for line in lines(folder) for name, value in line.items()}
    assert {
        "train/loss", "train/action", "train/video", "train/auxiliary", "train/gradient_norm",
        "validation/policy/action", "validation/policy_and_video/video", "validation/action_error",
        "validation/action_error_chunk", "validation/frame_psnr", "validation/frame_psnr_still",
        "validation/frame_agent", "validation/frame_whole", "validation/health/action_live",
        "validation/health/action_spread", "validation/health/video_explained",
        "evaluation/mean_score", "evaluation/success_rate", "evaluation/mean_max_coverage",
    } <= measured.keys()  # fmt: skip
    assert all(np.isfinite(value) for value in measured.values())
    assert (folder / "checkpoints" / "best").resolve().name == "step_00000006"
    assert (folder / "evaluation" / "step_00000006" / "results.json").is_file()
    sheet = np.asarray(Image.open(folder / "sheets" / "step_00000006.png"))
    assert sheet.shape[0] > 4 * 2 * 96 and len(np.unique(sheet)) > 50

    policy = load_policy(folder / "checkpoints" / "latest")
    weights = load_file(folder / "checkpoints" / "latest" / "ema.safetensors")
    assert weights.keys() == policy.model.state_dict().keys()
    assert any(not torch.equal(v, workspace.policy.model.state_dict()[name]) for name, v in weights.items())
    sample = workspace.dataset.__getitems__([(0, 0), (5, 1)])
    obs = {**sample["history"], **sample["low_dim"]}
    made = policy.predict_action(obs, torch.Generator().manual_seed(0))
    assert made["action"].shape == (2, 4, 2) and torch.isfinite(made["action"]).all()


def test_interrupted_equals_uninterrupted(tmp_path, config):
    """The real policy with dropout, in one go and in two parts with other workers."""
    dropout = (
        "model.transformer.dropout=0.2",
        "model.transformer.attention_dropout=0.2",
        "trainer.validate_every=null",
    )
    TrainUnifiedVideoActionWorkspace(config("whole", *dropout)).run()
    TrainUnifiedVideoActionWorkspace(config("parts", *dropout, "trainer.max_steps=4", "trainer.num_workers=1")).run()
    TrainUnifiedVideoActionWorkspace(config("parts", *dropout)).run()
    for file in ("model.safetensors", "ema.safetensors", "trainer_state.safetensors"):
        whole, parts = (load_file(tmp_path / name / "checkpoints" / "latest" / file) for name in ("whole", "parts"))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [line["train/loss"] for line in lines(tmp_path / "whole")] == [
        line["train/loss"] for line in lines(tmp_path / "parts")
    ]
    whole, parts = (tmp_path / name / "checkpoints" / "latest" / "normalizer.json" for name in ("whole", "parts"))
    assert whole.read_text() == parts.read_text() and "change_image" in whole.read_text()


def test_changes_of_frames_have_a_scale_of_their_own(tmp_path, config, caplog):
    """In every checkpoint, and a codec whose latents are small is named."""
    workspace = TrainUnifiedVideoActionWorkspace(config("run", "training.steps=3", "trainer.validate_every=null"))
    assert "image: the latents' mean square is 0.0" in caplog.text and "scripts/train_codec.py" in caplog.text
    workspace.run()
    stored = load_policy(tmp_path / "run" / "checkpoints" / "latest").normalizer.fields()["change_image"]
    batch = workspace.dataset.__getitems__([(index, 0) for index in range(len(workspace.dataset))])
    inputs = workspace.policy.transform.training_inputs(batch)
    squares = inputs.future[:, 0].square().mean(2)  # (B, F, h, w), of scaled changes
    assert (squares.square().sum() / squares.sum()).item() == pytest.approx(1, abs=1e-3)
    assert stored["offset"] == 0 and torch.equal(stored["scale"], workspace.normalizer.scale("change_image"))

    caplog.clear()
    other = ("vae.weights=null", "policy.relative_frames=false", f"data.cache_dir={tmp_path}/cache")
    trained = TrainUnifiedVideoActionWorkspace(config("absolute", *other))
    assert "mean square" not in caplog.text and "change_image" not in trained.normalizer.fields()
    for frames in ("decoded", "cached"):
        with pytest.raises(ValueError, match=f"policy.relative_frames needs data.frames=latents, got {frames}"):
            TrainUnifiedVideoActionWorkspace(config("other", f"data.frames={frames}"))


def test_two_stages(tmp_path, config, caplog):
    caplog.set_level(logging.INFO)
    stage1 = TrainUnifiedVideoActionWorkspace(config("video", "training=video", "trainer.max_steps=2"))
    stage1.run()
    measured = lines(tmp_path / "video")[-1]
    assert "validation/frame_psnr" in measured and "validation/action_error" not in measured
    checkpoint = tmp_path / "video" / "checkpoints" / "latest"
    stage2 = TrainUnifiedVideoActionWorkspace(config("joint", "training=joint", f"init_from={checkpoint}"))
    given = load_file(checkpoint / "ema.safetensors")
    assert all(torch.equal(value, given[name]) for name, value in stage2.policy.model.state_dict().items())

    kept = {name: value for name, value in given.items() if not name.startswith("action_head")}
    other = tmp_path / "without_action_head"
    other.mkdir()
    save_file(kept, other / "ema.safetensors")
    with pytest.raises(ValueError, match=r"init_allow_missing(.|\n)*missing: action_head"):
        TrainUnifiedVideoActionWorkspace(config("joint", f"init_from={other}"))
    TrainUnifiedVideoActionWorkspace(config("joint", f"init_from={other}", "init_allow_missing=[action_head]"))
    assert "tensors are not in it and start anew: action_head." in caplog.text
    with pytest.raises(FileNotFoundError, match=r"nowhere/ema.safetensors.*init_from=null"):
        TrainUnifiedVideoActionWorkspace(config("joint", f"init_from={tmp_path}/nowhere"))


def test_actions_alone_are_neither_drawn_nor_measured_in_frames(tmp_path, config):
    options = ("training=action", "trainer.max_steps=2", "trainer.sheet_every=2", "trainer.validate_every=2")
    TrainUnifiedVideoActionWorkspace(config("action", *options)).run()
    measured = lines(tmp_path / "action")[-1]
    assert "validation/action_error" in measured and "validation/frame_psnr" not in measured
    assert not (tmp_path / "action" / "sheets").exists()


def test_a_changed_recipe_is_told_on_resume(config, caplog):
    TrainUnifiedVideoActionWorkspace(config("run", "trainer.max_steps=1", "trainer.validate_every=null")).run()
    changed = ("trainer.max_steps=2", "trainer.validate_every=null", "training.optimizer.learning_rate=0.5")
    TrainUnifiedVideoActionWorkspace(config("run", *changed)).run()
    assert "changed: training.optimizer.learning_rate" in caplog.text


SHORT = ("trainer.max_steps=1", "trainer.validate_every=null")


def copied(store: Path, place: Path) -> Path:
    return Path(shutil.copytree(store, place, copy_function=shutil.copyfile))  # with new times


def test_a_run_whose_checkpoints_are_all_damaged_ends_before_anything_is_built(tmp_path, config):
    TrainUnifiedVideoActionWorkspace(config("run", *SHORT)).run()
    weights = tmp_path / "run" / "checkpoints" / "latest" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read: step_.*model.safetensors is damaged"):
        TrainUnifiedVideoActionWorkspace(config("run", *SHORT, f"data.cache_dir={tmp_path / 'new'}"))
    assert not (tmp_path / "new").exists()


def test_a_run_goes_on_with_its_own_normaliser_wherever_its_data_lie(tmp_path, config, pusht_store):
    TrainUnifiedVideoActionWorkspace(config("run", *SHORT)).run()
    path = tmp_path / "run" / "checkpoints" / "latest" / "normalizer.json"
    fields = json.loads(path.read_text())
    fields["action"]["scale"] = [0.125, 0.25]
    path.write_text(json.dumps(fields))
    state = path.with_name("trainer_state.json")
    listing = {**json.loads(state.read_text()), "files": listed(path.parent)}
    del listing["files"][state.name]
    state.write_text(json.dumps(listing))
    moved = copied(pusht_store, tmp_path / "moved" / "demos.zarr")
    again = TrainUnifiedVideoActionWorkspace(config("run", *SHORT, f"task.dataset.paths={moved}"))
    assert again.normalizer.scale("action").tolist() == [0.125, 0.25]
    assert "change_image" in again.normalizer
    anew = TrainUnifiedVideoActionWorkspace(config("another", *SHORT))
    assert anew.normalizer.scale("action").tolist() != [0.125, 0.25]


@pytest.mark.parametrize("changed", ["img", "action"])
@pytest.mark.parametrize("frames", ["latents", "decoded"])
def test_a_run_does_not_go_on_with_other_data(tmp_path, config, pusht_store, changed, frames):
    store = copied(pusht_store, tmp_path / "demos.zarr")
    options = (*SHORT, f"data.frames={frames}", "policy.relative_frames=false", f"task.dataset.paths={store}")
    TrainUnifiedVideoActionWorkspace(config("run", *options, f"data.cache_dir={tmp_path}/old")).run()
    array = zarr.open_group(store)["data"][changed]
    array[77] = 255 - array[77]
    with pytest.raises(
        ValueError, match="trained on other data: .*demos.zarr has changed.*output_dir.*init_from"
    ) as error:
        TrainUnifiedVideoActionWorkspace(config("run", *options, f"data.cache_dir={tmp_path}/old"))
    assert str(tmp_path / "run" / "checkpoints") in str(error.value)
    options = (*options, f"data.cache_dir={tmp_path}/new")
    weights = tmp_path / "run" / "checkpoints" / "latest"
    TrainUnifiedVideoActionWorkspace(config("next", *options, f"init_from={weights}")).run()  # as it says


def test_more_or_unknown_data(tmp_path, config, pusht_store, caplog):
    TrainUnifiedVideoActionWorkspace(config("run", *SHORT)).run()
    with pytest.raises(ValueError, match="2 tables of .*pusht.zarr, now there are 4 of .*; choose a new output_dir"):
        TrainUnifiedVideoActionWorkspace(config("run", *SHORT, f"task.dataset.paths=[{pusht_store},{pusht_store}]"))
    checkpoint = tmp_path / "run" / "checkpoints" / "latest"
    (checkpoint / "data.json").unlink()  # as older versions wrote them
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    del state["files"]["data.json"]
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    TrainUnifiedVideoActionWorkspace(config("run", *SHORT))
    assert "does not say what it was trained on" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_cache_ends_training_with_a_sentence(tmp_path, config, workers):
    options = ("trainer.validate_every=null", "policy.relative_frames=false", f"data.cache_dir={tmp_path}/cache")
    workspace = TrainUnifiedVideoActionWorkspace(config("run", *options, f"trainer.num_workers={workers}"))
    store = workspace.dataset._reader.caches
    (row_store,) = [group["mean"] for camera in store.values() for group in camera["image"]._stores.values()][:1]
    row_store._checked[:] = False  # which the measure of latents has read
    with row_store.path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(StoreError, match="is damaged: its checksum is another. Delete this folder") as error:
        workspace.run()
    assert "Traceback" not in str(error.value)


def test_a_resolved_file_trains_without_hydra(tmp_path, config, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(config("plain", "trainer.validate_every=null"), resolve=True))
    run.main([str(path), "trainer.max_steps=2"])
    assert (tmp_path / "plain" / "checkpoints" / "latest").resolve().name == "step_00000002"
    with pytest.raises(SystemExit, match="trainer.epochs: TrainerSettings has no such field"):
        run.main([str(path), "trainer.epochs=2"])
    damage = StoreError("demos.zarr: data/img[3:4] cannot be read")
    monkeypatch.setattr(TrainUnifiedVideoActionWorkspace, "run", lambda _: (_ for _ in ()).throw(damage))
    with pytest.raises(SystemExit, match=r"^run: demos.zarr: data/img\[3:4\] cannot be read"):
        run.main([str(path)])


def test_the_first_of_two_processes_alone_caches_and_writes_and_both_evaluate(tmp_path, config):
    """A fresh cache and a run of two steps, evaluated at the end; frames are encoded once."""
    evaluated = ("trainer.evaluate_every=2", "trainer.validate_every=null", "training.steps=2", "policy.sampler=ddim2",
                 "task.env_runner.n_episodes=3", "task.env_runner.n_envs=1", "task.env_runner.max_steps=8",
                 "trainer.tensorboard=true")  # fmt: skip
    for name, launcher in (
        ("one", [sys.executable]),
        ("two", [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]),
    ):
        path = tmp_path / f"{name}.yaml"
        composed = config(name, *evaluated, f"data.cache_dir={tmp_path}/{name}_cache")
        path.write_text(OmegaConf.to_yaml(composed, resolve=True))
        environment = {**os.environ, "PYTHONPATH": str(CONFIG.parent), "OMP_NUM_THREADS": "1"}
        command = [*launcher, str(Path(__file__).with_name("watched_run.py")), str(path), str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one_0", "two_0", "two_1"))
    frames, views, plans = 150, 2, 2  # of the store; as they are and mirrored; of an episode, each encodes one frame
    assert alone["encoded"] == frames * views + 3 * plans
    assert first["encoded"] == frames * views + 2 * plans and second == {"encoded": plans, "written": []}
    here = [{path.removeprefix(name) for path in told["written"]} for name, told in (("one", alone), ("two", first))]
    assert any("latents" in path for path in here[0]) and any("results.json" in path for path in here[1])
    measured = [lines(tmp_path / name)[-1] for name in ("one", "two")]
    assert measured[0]["evaluation/episodes"] == measured[1]["evaluation/episodes"] == 3
    assert measured[0]["evaluation/mean_score"] == pytest.approx(measured[1]["evaluation/mean_score"], abs=1e-3)


@pytest.mark.parametrize(
    ("steps", "optimizer", "lives"),
    [(60, {}, True), (40, {"fan_in": "null", "learning_rate": "2e-3"}, False)],
    ids=["preset", "all layers alike"],
)
def test_the_presets_action_head_stays_alive_on_small_batches(pusht_store, tmp_path, steps, optimizer, lives):
    """uva_pusht_mini, actions alone; at a little more than its rate the head dies where all layers learn alike."""
    overrides = [f"training.optimizer.{name}={value}" for name, value in optimizer.items()]
    overrides += ["training=action", "training.batch_size=16", f"training.steps={steps}", "trainer.device=cpu"]
    overrides += ["training.schedule.shape=constant", "training.schedule.warmup_steps=10", "trainer.tensorboard=false"]
    overrides += ["trainer.validate_every=null", "trainer.sheet_every=null", "task.dataset.val_ratio=0.25"]
    overrides += [f"task.dataset.paths={pusht_store}", f"data.cache_dir={tmp_path}", f"output_dir={tmp_path / 'run'}"]
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        workspace = TrainUnifiedVideoActionWorkspace(compose("uva_pusht_mini", overrides))
    workspace.run()
    batch = workspace.dataset.validation().__getitems__([(index, index) for index in range(32)])
    health = heads_health(workspace.policy.eval(), batch)
    assert (health["action_live"] > 0.3 and health["action_spread"] > 0.05) is lives
    assert bool(warnings(health)) is not lives
