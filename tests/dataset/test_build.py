"""Datasets from configurations, and the script that fills caches."""

import logging

import numpy as np
import pytest
import torch
import zarr
from omegaconf import OmegaConf

from tests.loading import load_script
from unified_video_action.dataset.build import build_dataset
from unified_video_action.policy.uva import UnifiedVideoActionPolicy
from unified_video_action.vae.tiny import TAEF2


@pytest.fixture
def config(pusht_store):
    return {
        "task": {
            "horizon": {"history": 2, "future": 2, "stride": 4, "actions": 8},
            "shape_meta": {
                "obs": {
                    "image": {"shape": [3, 96, 96], "type": "rgb"},
                    "agent_pos": {"shape": [2], "type": "low_dim", "steps": 1},
                },
                "action": {"shape": [2]},
                "auxiliary_dim": 6,
            },
            "dataset": {
                "_target_": "unified_video_action.dataset.pusht.PushTDataset",
                "paths": str(pusht_store),
                "val_ratio": 0.25,
                "augmentation": {"_target_": "unified_video_action.dataset.augmentation.VideoAugmentation"},
            },
        },
    }


def test_shape_meta_decides_what_samples_hold(config):
    sample = build_dataset(OmegaConf.create(config))[(0, 0)]
    assert sample["auxiliary"].shape == (4, 6) and sample["low_dim"]["agent_pos"].shape == (1, 2)
    config["task"]["shape_meta"]["action"]["history"] = True
    del config["task"]["shape_meta"]["obs"]["agent_pos"], config["task"]["shape_meta"]["auxiliary_dim"]
    sample = build_dataset(config)[(0, 0)]
    assert sample["history_action"].shape == (8, 2) and sample["low_dim"] == {} and "auxiliary" not in sample


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("shape_meta.obs.image.shape", [3, 64, 64], r"obs.image is \(3, 64, 64\), but the data has \(3, 96, 96\)"),
        ("shape_meta.obs.agent_pos.shape", [3], "obs.agent_pos"),
        ("shape_meta.auxiliary_dim", 5, "auxiliary_dim is 5, but the data has 6"),
        ("dataset.pad_befor", 1, "task.dataset.pad_befor"),
    ],
)
def test_what_does_not_fit_is_named(config, key, value, message):
    config = OmegaConf.create(config)
    OmegaConf.update(config, f"task.{key}", value, force_add=True)
    with pytest.raises(ValueError, match=message):
        build_dataset(config)


@pytest.mark.parametrize(
    ("frames", "dtype"), [("latents", torch.float32), ("cached", torch.uint8), ("decoded", torch.uint8)]
)
def test_settings_choose_where_frames_come_from(config, toy_codec, tmp_path, frames, dtype):
    dataset = build_dataset(config)
    settings = {**config, "data": {"frames": frames, "cache_dir": str(tmp_path / "caches"), "n_views": 2}}
    UnifiedVideoActionPolicy.open_data(settings, dataset, {"codec": toy_codec(), "text": None}, progress=False)
    assert dataset[(0, 0)]["history"]["image"].dtype == dtype
    assert (tmp_path / "caches").exists() == (frames != "decoded")


def test_the_script_fills_caches_once_and_says_when_they_are_stale(make_store, tmp_path, caplog):
    script = load_script("cache_latents")
    store = make_store(lengths=(30, 26))
    arguments = ["--config-name", "uva_pusht_mini", "task=pusht", f"task.dataset.paths={store}", "--device", "cpu"]
    arguments += ["vae=taef2", "vae.weights=random", "vae.image_size=32", f"data.cache_dir={tmp_path / 'caches'}"]
    assert script.main(arguments) == 0
    (cache,) = (tmp_path / "caches").glob("*.latents")
    latents = np.load(cache / "plain.mean.npy")
    codec = TAEF2("random", image_size=32)
    frames = np.moveaxis(zarr.open_group(store, mode="r")["data/img"][:2], -1, 1)
    assert np.allclose(latents[:2], codec.moments(torch.from_numpy(frames)[None]).mean[0], atol=1e-2)
    codec.encoder[0].weight.add_(0.1)
    codec.save(tmp_path / "other.safetensors")
    others = [*arguments, f"vae.weights={tmp_path / 'other.safetensors'}"]
    with caplog.at_level(logging.INFO):
        assert script.main(others) == 1
    assert "built for another codec" in caplog.text
    assert script.main([*others, "--rebuild"]) == 0
    assert script.main([*arguments, "data.n_vews=2"]) == 1 and "n_vews" in caplog.text
