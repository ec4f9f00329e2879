"""scripts/convert_checkpoint.py on checkpoints laid out like the published ones."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.compat.test_reference_names import mar_shapes
from tests.compat.test_torch_archive import Call
from tests.reseed import tensor_list
from unified_video_action.compat.tensors import Shapes
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.policy.build import load_policy
from unified_video_action.vae.kl import build_network, read_weights
from unified_video_action.workspace.converting import convert

ROOT = Path(__file__).resolve().parents[2]


def light(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors whose file is small: one value each, repeated."""
    return {name: torch.full((1,), 0.01 * (i % 7)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}


def shallow(shapes: Shapes) -> Shapes:
    """One block of each kind, so that what is written stays small."""
    return {name: shape for name, shape in shapes.items() if ".blocks." not in name and not _deeper(name)}


def _deeper(name: str) -> bool:
    parts = name.split(".")
    return any(kind.endswith("blocks") and number != "0" for kind, number in zip(parts, parts[1:]))


def published(name: str, obs: dict, **policy) -> dict:
    """A checkpoint's content, without the file."""
    state = {f"model.{key}": value for key, value in light(shallow(tensor_list(name))).items()}
    state |= {f"vae_model.{key}": value for key, value in light(tensor_list("vae")).items()}
    state |= {
        "normalizer.params_dict.action.scale": torch.tensor([0.5, 0.25]),
        "normalizer.params_dict.action.offset": torch.tensor([-1.0, 1.0]),
        "normalizer.params_dict.action.input_stats.min": torch.tensor([0.0, -8.0]),
        "normalizer.params_dict.image.scale": torch.tensor([2.0]),
        "normalizer.params_dict.image.offset": torch.tensor([-1.0]),
        "_dummy_variable": torch.zeros(0),
    }
    dim = tensor_list(name)["action_proj_cond.weight"][1]
    sampling = {"num_sampling_steps": "50", "act_diff_testing_steps": "16", "temperature": 0.9, "num_iter": 2}
    settings = {
        "task": {"name": name, "shape_meta": {"obs": obs, "action": {"shape": [dim]}}},
        "model": {"policy": {"n_action_steps": 6, "autoregressive_model_params": sampling, **policy}},
    }
    return {"cfg": OmegaConf.create(settings), "state_dicts": {"ema_model": state}, "pickles": {"epoch": b"K\x03."}}


PUSHT_OBS = {"agent_pos": {"shape": [2], "type": "low_dim"}, "image": {"shape": [3, 96, 96], "type": "rgb"}}


def test_a_published_policy_becomes_a_folder_that_loads(tmp_path: Path) -> None:
    torch.save(published("pusht", PUSHT_OBS), tmp_path / "pusht.ckpt")
    convert(tmp_path / "pusht.ckpt", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pusht.ckpt"]  # nothing temporary is left
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"ema.safetensors", "codec.safetensors", "normalizer.json", "config.yaml"}
    policy = load_policy(tmp_path / "out")
    assert len(policy.model.mar.encoder.blocks) == 1
    torch.testing.assert_close(policy.normalizer.unnormalize("action", torch.zeros(2)), torch.tensor([2.0, -4.0]))
    assert policy.normalizer.names == ("action",)
    assert policy.codec.latent_shape == policy.model.spec.latent
    config = OmegaConf.load(tmp_path / "out" / "config.yaml")
    assert (config.policy.sampler, config.policy.video_sampler) == ("ancestral16", "ancestral50")
    assert (config.policy.action_steps, config.policy.temperature, config.policy.iterations) == (6, 0.9, 2)
    assert config.task.env._target_.endswith("PushTEnv")  # it can be evaluated
    with torch.no_grad():
        obs = {"image": torch.zeros(1, 4, 16, 16, 16)}
        assert policy.predict_action(obs, torch.Generator().manual_seed(0))["action"].shape == (1, 6, 2)
    with pytest.raises(FileExistsError, match="out exists"):
        convert(tmp_path / "pusht.ckpt", tmp_path / "out")


def test_a_policy_of_another_task_keeps_its_own_observations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    obs = {
        "camera0_rgb": {"shape": [3, 224, 224], "type": "rgb", "horizon": "${task.img_obs_horizon}"},
        "robot0_eef_pos": {"shape": [3], "type": "low_dim"},
        "robot0_eef_rot_axis_angle": {"shape": [6], "type": "low_dim"},
        "robot0_gripper_width": {"shape": [1], "type": "low_dim"},
        "robot0_eef_rot_axis_angle_wrt_start": {"shape": [6], "type": "low_dim"},
    }
    content = published("umi", obs, different_history_freq=True, shift_action=False)
    state = content["state_dicts"]["ema_model"]
    content["state_dicts"]["ema_model"] = {key: value for key, value in state.items() if "normalizer" not in key}
    torch.save(content, tmp_path / "umi.ckpt")
    saved = {}
    monkeypatch.setattr(
        "unified_video_action.workspace.converting.save", lambda tensors, path, _: saved.update({path.name: tensors})
    )
    convert(tmp_path / "umi.ckpt", tmp_path / "out")
    task = OmegaConf.load(tmp_path / "out" / "config.yaml").task
    assert set(task) == {"shape_meta", "horizon"}
    assert task.horizon.action_offset == 1
    assert list(task.shape_meta.obs) == list(obs)
    assert task.shape_meta.obs.robot0_gripper_width == {"shape": [1], "type": "low_dim", "steps": 4}
    assert (task.shape_meta.text_dim, task.shape_meta.proprio_output_dim) == (512, 6)
    normalizer = Normalizer.from_json((tmp_path / "out" / "normalizer.json").read_text())
    assert set(normalizer.names) == {"action", *list(obs)[1:]}  # identity
    assert set(saved) == {"ema.safetensors", "codec.safetensors"}


def test_mar_becomes_the_start_of_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"model_ema": light(shallow(mar_shapes())), "epoch": 800}, tmp_path / "mar.pth")
    with caplog.at_level("INFO"):
        convert(tmp_path / "mar.pth", tmp_path / "start")
    assert [path.name for path in (tmp_path / "start").iterdir()] == ["ema.safetensors"]
    with safe_open(tmp_path / "start" / "ema.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"mar.encoder.blocks.0.attn.qkv.weight", "video_heads.0.net.input_proj.weight"} <= names
    assert "class_emb.weight" in caplog.text
    assert "init_allow_missing=[action_head,mar.decoder_spatial_position,mar.decoder_temporal_position" in caplog.text


def of_latent_diffusion(codec: dict[str, Tensor]) -> dict:
    state = {f"first_stage_model.{name}": tensor for name, tensor in codec.items()}
    others = {"first_stage_model.loss.logvar": torch.zeros(1), "model.diffusion_model.out.weight": torch.zeros(1)}
    return {"state_dict": state | others, "global_step": 1}


@pytest.mark.parametrize("wrapped", [lambda codec: {"model": codec}, of_latent_diffusion])
def test_kl16_becomes_a_weights_file_without_its_loss(tmp_path: Path, wrapped: Callable) -> None:
    torch.save(wrapped(light(tensor_list("vae"))), tmp_path / "kl16.ckpt")
    with pytest.raises(ValueError, match="ends with .safetensors"):
        convert(tmp_path / "kl16.ckpt", tmp_path / "folder")
    convert(tmp_path / "kl16.ckpt", tmp_path / "kl16.safetensors")
    found = load_file(tmp_path / "kl16.safetensors")
    with torch.device("meta"):
        expected = build_network().state_dict()
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in expected.items()}
    assert read_weights(tmp_path / "kl16.ckpt").keys() == found.keys()


def with_nan(content: dict) -> None:
    content["state_dicts"]["ema_model"]["model.z_proj.bias"] = torch.full((768,), torch.nan)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("pusht", with_nan, "z_proj.bias is not finite"),
        ("pusht", lambda content: content["cfg"].update(task=["not a task"]), "its cfg is not of the published code"),
        ("pusht", lambda content: content.update(state_dicts={"model": {}}), r"no averaged weights .*, only model"),
        ("toolhang", lambda content: None, r"its weights take 2 cameras, its shape_meta has \['image'\]"),
    ],
)
def test_bad_checkpoints_are_refused_and_leave_nothing(
    tmp_path: Path, name: str, change: Callable[[dict], None], message: str
) -> None:
    content = published(name, PUSHT_OBS)
    change(content)
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=f"x.ckpt.*{message}"):
        convert(tmp_path / "x.ckpt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_the_command_line_refuses_in_one_line(tmp_path: Path) -> None:
    torch.save({"state_dicts": {"model": Call(os.system, f"touch {tmp_path / 'marker'}")}}, tmp_path / "hostile.ckpt")
    command = [sys.executable, ROOT / "scripts" / "convert_checkpoint.py", tmp_path / "hostile.ckpt", "out"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith("convert_checkpoint.py: ") and refused.stderr.count("\n") == 1
    assert "posix.system" in refused.stderr
    assert not (tmp_path / "marker").exists() and not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="no checkpoint file .*nowhere.ckpt"):
        convert(tmp_path / "nowhere.ckpt", tmp_path / "out")
