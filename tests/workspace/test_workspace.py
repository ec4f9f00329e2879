"""Whole runs of a small UVA on a small store, from a composed configuration to the files they leave."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.processes import start
from tests.shrunk import SHRUNK, read
from tests.workspace.watched_run import watched_run
from unified_video_action.compat.checkpoint_files import listed
from unified_video_action.dataset.store import StoreError
from unified_video_action.policy.build import load_policy
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

SMALL = (
    *SHRUNK,
    *("task.dataset.val_ratio=0.25", "training.batch_size=6", "training.steps=6", "training.schedule.warmup_steps=2"),
    *("trainer.checkpoint_every=3", "trainer.validate_every=4", "trainer.validation_windows=3"),
    *("trainer.prediction_grid_every=null", "trainer.prediction_grid_windows=4", "trainer.evaluate_every=null"),
)
SHORT = ("trainer.max_steps=1", "trainer.validate_every=null")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def composed(pusht_store, cache):
    """What composes a configuration for an output folder."""

    def make(folder: Path, *overrides: str) -> DictConfig:
        data = (f"task.dataset.paths={pusht_store}", f"data.cache_dir={cache}", f"output_dir={folder}")
        return OmegaConf.create(read("uva_pusht_mini", *SMALL, *data, *overrides))

    return make


@pytest.fixture
def build(composed, tmp_path):
    return lambda folder, *overrides: TrainUnifiedVideoActionWorkspace(composed(tmp_path / folder, *overrides))


@pytest.fixture(scope="module")
def one_step(composed, tmp_path_factory) -> Path:
    """The folder of a run of one step, not to be changed."""
    folder = tmp_path_factory.mktemp("run") / "run"
    TrainUnifiedVideoActionWorkspace(composed(folder, *SHORT)).run()
    return folder


@pytest.fixture
def begun(one_step, tmp_path) -> Path:
    """A copy of it as tmp_path/run; the newest checkpoint."""
    shutil.copytree(one_step, tmp_path / "run", symlinks=True)
    return tmp_path / "run" / "checkpoints" / "latest"


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_list(checkpoint: Path) -> None:
    """Make a checkpoint's list that of the files that it has now."""
    path = checkpoint / "trainer_state.json"
    files = {name: entry for name, entry in listed(checkpoint).items() if name != path.name}
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": files}))


def copied(store: Path, folder: Path) -> Path:
    return Path(shutil.copytree(store, folder, copy_function=shutil.copyfile))  # with new times


def test_a_run_leaves_everything_a_policy_needs(tmp_path, build):
    simulated = (
        "trainer.tensorboard=true",
        "trainer.evaluate_every=6",
        "task.env_runner.n_episodes=2",
        "task.env_runner.n_envs=1",
    )
    workspace = build("run", "trainer.prediction_grid_every=6", *simulated, "task.env_runner.max_steps=8")
    workspace.run()
    folder = tmp_path / "run"
    measured = {name: value for line in lines(folder) for name, value in line.items()}
    assert {
        "train/loss", "train/action", "train/video", "train/auxiliary", "train/gradient_norm",
        "validation/policy/action", "validation/action_error", "validation/frame_psnr", "validation/frame_agent",
        "validation/health/action_live", "evaluation/mean_score", "evaluation/success_rate",
    } <= measured.keys()  # fmt: skip
    assert all(np.isfinite(value) for value in measured.values())
    assert (folder / "checkpoints" / "best").resolve().name == "step_00000006"
    assert (folder / "evaluation" / "step_00000006" / "results.json").is_file()
    (video,) = (folder / "evaluation" / "step_00000006" / "videos").iterdir()
    assert video.name.startswith("best_seed_")
    shown = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [len(shown.Images(name)) for name in ("imagined", "evaluation/best")] == [1, 1]
    grid = np.asarray(Image.open(folder / "prediction_grids" / "step_00000006.png"))
    assert grid.shape[0] > 4 * 2 * 96 and len(np.unique(grid)) > 50

    policy = load_policy(folder / "checkpoints" / "latest")
    weights = load_file(folder / "checkpoints" / "latest" / "ema.safetensors")
    assert weights.keys() == policy.model.state_dict().keys()
    assert any(not torch.equal(v, workspace.policy.model.state_dict()[name]) for name, v in weights.items())
    sample = workspace.dataset.__getitems__([(0, 0), (5, 1)])
    made = policy.predict_action({**sample["history"], **sample["low_dim"]}, torch.Generator().manual_seed(0))
    assert made["action"].shape == (2, 4, 2) and torch.isfinite(made["action"]).all()


def test_interrupted_equals_uninterrupted(tmp_path, build):
    """The real policy with dropout, in one go and in two parts with other workers."""
    dropout = ("model.transformer.dropout=0.2", "model.transformer.attention_dropout=0.2")
    options = (*dropout, "trainer.validate_every=null")
    build("whole", *options).run()
    build("parts", *options, "trainer.max_steps=4", "trainer.num_workers=1").run()
    build("parts", *options).run()
    for file in ("model.safetensors", "ema.safetensors", "trainer_state.safetensors"):
        whole, parts = (load_file(tmp_path / name / "checkpoints" / "latest" / file) for name in ("whole", "parts"))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    losses = [[line["train/loss"] for line in lines(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    whole, parts = (tmp_path / name / "checkpoints" / "latest" / "normalizer.json" for name in ("whole", "parts"))
    assert whole.read_text() == parts.read_text() and "change_image" in whole.read_text()


def test_changes_of_frames_have_a_scale_of_their_own(one_step, tmp_path, build, caplog):
    """In every checkpoint, and a codec whose latents are small is named."""
    workspace = build("run", *SHORT)
    assert "image: the latents' mean square is 0.0" in caplog.text and "scripts/train_codec.py" in caplog.text
    stored = load_policy(one_step / "checkpoints" / "latest").normalizer.fields()["change_image"]
    batch = workspace.dataset.__getitems__([(index, 0) for index in range(len(workspace.dataset))])
    inputs = workspace.policy.transform.training_inputs(batch)
    squares = inputs.future[:, 0].square().mean(2)  # (B, F, h, w), of scaled changes
    assert (squares.square().sum() / squares.sum()).item() == pytest.approx(1, abs=1e-3)
    assert stored["offset"] == 0 and torch.equal(stored["scale"], workspace.normalizer.scale("change_image"))

    caplog.clear()
    trained = build("absolute", "vae.weights=null", "policy.relative_frames=false", f"data.cache_dir={tmp_path}/cache")
    assert "mean square" not in caplog.text and "change_image" not in trained.normalizer.fields()
    with pytest.raises(ValueError, match="policy.relative_frames needs data.frames=latents, got cached"):
        build("other", "data.frames=cached")


def test_two_stages(tmp_path, build, caplog):
    with caplog.at_level(logging.INFO):
        build("video", "training=video", "trainer.max_steps=2", "trainer.evaluate_every=1").run()
    assert "No evaluation in the simulator" in caplog.text  # it does not act
    measured = lines(tmp_path / "video")[-1]
    assert "validation/frame_psnr" in measured and "validation/action_error" not in measured
    checkpoint = tmp_path / "video" / "checkpoints" / "latest"
    stage2 = build("joint", "training=joint", f"init_from={checkpoint}")
    given = load_file(checkpoint / "ema.safetensors")
    assert all(torch.equal(value, given[name]) for name, value in stage2.policy.model.state_dict().items())

    other = tmp_path / "without_action_head"
    other.mkdir()
    kept = {name: value for name, value in given.items() if not name.startswith("action_head")}
    save_file(kept, other / "ema.safetensors")
    with caplog.at_level(logging.INFO):
        build("joint", f"init_from={other}", "init_allow_missing=[action_head]")
    assert "tensors are not in it and are initialised: action_head." in caplog.text
    with pytest.raises(ValueError, match="init_normalizer=true takes the normaliser of init_from, which is not set"):
        build("nothing", "init_normalizer=true")


def test_a_run_goes_on_with_its_own_normaliser_wherever_its_data_lie(begun, tmp_path, build, pusht_store):
    path = begun / "normalizer.json"
    fields = json.loads(path.read_text())
    fields["action"]["scale"] = [0.125, 0.25]
    path.write_text(json.dumps(fields))
    write_list(begun)
    again = build("run", *SHORT, f"task.dataset.paths={copied(pusht_store, tmp_path / 'moved' / 'demos.zarr')}")
    assert again.normalizer.scale("action").tolist() == [0.125, 0.25]
    assert "change_image" in again.normalizer
    assert build("another", *SHORT).normalizer.scale("action").tolist() != [0.125, 0.25]


@pytest.mark.parametrize(("changed", "frames"), [("img", "latents"), ("action", "decoded")])
def test_a_run_does_not_go_on_with_other_data(tmp_path, build, pusht_store, changed, frames):
    store = copied(pusht_store, tmp_path / "demos.zarr")
    options = (*SHORT, f"data.frames={frames}", "policy.relative_frames=false", f"task.dataset.paths={store}")
    build("run", *options, f"data.cache_dir={tmp_path}/old").run()
    array = zarr.open_group(store)["data"][changed]
    array[77] = 255 - array[77]
    message = "trained on other data: .*demos.zarr has changed.*output_dir.*init_from"
    with pytest.raises(ValueError, match=message) as error:
        build("run", *options, f"data.cache_dir={tmp_path}/old")
    assert str(tmp_path / "run" / "checkpoints") in str(error.value)
    weights = tmp_path / "run" / "checkpoints" / "latest"
    build("next", *options, f"data.cache_dir={tmp_path}/new", f"init_from={weights}").run()  # as it says


def test_more_or_unknown_data(begun, build, pusht_store, caplog):
    with pytest.raises(ValueError, match="2 tables of .*pusht.zarr, now there are 4 of .*; choose a new output_dir"):
        build("run", *SHORT, f"task.dataset.paths=[{pusht_store},{pusht_store}]")
    (begun / "data.json").unlink()  # as older versions wrote them
    write_list(begun)
    build("run", *SHORT)
    assert "does not say what it was trained on" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_cache_ends_training_with_a_sentence(tmp_path, build, workers):
    options = ("trainer.validate_every=null", "policy.relative_frames=false", f"data.cache_dir={tmp_path}/cache")
    workspace = build("run", *options, f"trainer.num_workers={workers}")
    (row_store,) = [each["plain"]["mean"] for each in workspace.dataset._reader.caches.values()]
    row_store._checked[:] = False  # which the measure of latents has read
    with row_store.path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(StoreError, match="is damaged. Delete this folder") as error:
        workspace.run()
    assert "Traceback" not in str(error.value)


def test_the_first_of_two_processes_alone_caches_and_writes_and_both_evaluate(tmp_path, composed):
    """A fresh cache and a run of two steps, evaluated at the end; frames are encoded once."""
    options = ("training.steps=2", "trainer.evaluate_every=2", "trainer.validate_every=null")
    options += ("trainer.tensorboard=true", "trainer.evaluate_videos=0")
    options += ("task.env_runner.n_episodes=3", "task.env_runner.n_envs=1", "task.env_runner.max_steps=8")
    for processes, name in enumerate(("one", "two"), start=1):
        config = composed(tmp_path / name, *options, f"data.cache_dir={tmp_path}/{name}_cache")
        output = tmp_path / "output.txt"
        exits = start(watched_run, config, tmp_path / name, processes=processes, output=output)
        assert exits == [0] * processes, output.read_text()
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one_0", "two_0", "two_1"))
    frames, views, plans = 150, 2, 2  # of the store; as they are and mirrored; of an episode, each encodes one frame
    assert alone["encoded"] == frames * views + 3 * plans
    assert first["encoded"] == frames * views + 2 * plans and second == {"encoded": plans, "written": []}
    here = [
        {path.removeprefix(name) for path in result["written"]} for name, result in (("one", alone), ("two", first))
    ]
    assert any("latents" in path for path in here[0]) and any("results.json" in path for path in here[1])
    measured = [lines(tmp_path / name)[-1] for name in ("one", "two")]
    assert measured[0]["evaluation/episodes"] == measured[1]["evaluation/episodes"] == 3
    assert measured[0]["evaluation/mean_score"] == pytest.approx(measured[1]["evaluation/mean_score"], abs=1e-3)
