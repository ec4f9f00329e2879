"""Checkpoints on the hub: sent, fetched, and refused, with a hub on this machine."""

import json
from pathlib import Path

import pytest
import torch

from tests.file_server import Hub, serving
from tests.loading import load_script
from unified_video_action.env_runner.preparation import run_folder
from unified_video_action.policy.build import load_policy
from unified_video_action.untrusted import local_checkpoint

FIGURES = {
    "mean_score": 0.875,
    "episodes": 20,
    "intervals": {"level": 0.95, "mean_score": {"low": 0.75, "high": 0.95, "method": "bootstrap"}},
    "evaluation": {"command": "python eval_sim.py --checkpoint checkpoints/shipped", "start_seed": 100000},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A hub with one repository, which is empty, and a cache of its own."""
    (tmp_path / "repository").mkdir()
    with serving(Hub, tmp_path / "repository") as server:
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
        server.folder = tmp_path / "repository"
        local_checkpoint.cache_clear()
        yield server
        local_checkpoint.cache_clear()


@pytest.fixture
def shipped(trained_run: Path, tmp_path: Path) -> Path:
    """An exported checkpoint, with figures."""
    folder = tmp_path / "shipped"
    source = str(trained_run / "checkpoints/latest")
    load_script("export_checkpoint").main(["--checkpoint", source, "--output", str(folder)])
    metrics = json.loads((folder / "metrics.json").read_text()) | FIGURES
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "README.md").write_text(f"# shipped\n\n{FIGURES['evaluation']['command']}\n")
    return folder


def push(folder: Path) -> None:
    load_script("push_to_hub").main(["--checkpoint", str(folder), "--repo", "user/name"])


def test_what_is_pushed_is_fetched_again_and_acts_alike(hub, shipped: Path) -> None:
    push(shipped)
    card = (hub.folder / "README.md").read_text()
    assert "license: mit" in card and "value: 0.875" in card and "0.7500 to 0.9500" in card
    assert "eval_sim.py --checkpoint hf://user/name" in card
    for name in ("ema_evil.pkl", "model.safetensors", "train.py", "optimizer.bin"):
        (hub.folder / name).write_bytes(b"not of a checkpoint that is to act")
    fetched, here = load_policy("hf://user/name"), load_policy(shipped)
    for name, tensor in here.model.state_dict().items():
        assert torch.equal(tensor, fetched.model.state_dict()[name]), name
    assert set(hub.files_asked) == {"config.yaml", "ema.safetensors", "metrics.json", "normalizer.json"}
    assert run_folder(Path("hf://user/name@v1")) == Path("outputs/hub/name@v1")


def test_a_cut_connection_is_taken_up_and_damage_is_not_kept(
    hub, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(shipped)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # what is written at once
    hub.cut = (shipped / "ema.safetensors").stat().st_size // 3
    load_policy("hf://user/name")
    assert any(hub.ranges_asked), "the rest was not asked for"
    hub.cut = None
    local_checkpoint.cache_clear()
    cached = next((hub.folder.parent / "cache").rglob("ema.safetensors")).resolve()
    cached.write_bytes(cached.read_bytes()[:-4] + b"evil")
    with pytest.raises(ValueError, match="ema.safetensors is damaged: its checksum"):
        load_policy("hf://user/name")
    load_policy("hf://user/name")  # fetched again


@pytest.mark.parametrize(
    ("location", "message"),
    [("hf://name", "expected hf://USER/NAME"), ("hf://user/name@../x y", "expected"), ("hf://user/name", "cannot be")],
)
def test_what_cannot_be_fetched_is_named(hub, location: str, message: str) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises((ValueError, OSError), match=f"checkpoint {location}.*{message}"):
        load_policy(location)
