"""metrics.jsonl, TensorBoard and wandb."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.workspace.fakes import metrics, trainer_settings
from unified_video_action.env_runner.videos import write_mp4
from unified_video_action.workspace.process import build_accelerator
from unified_video_action.workspace.records import Records


@pytest.fixture(autouse=True)
def accelerator():
    """Its trackers write a log that needs one."""
    build_accelerator(trainer_settings())


def test_lines_are_on_disk_at_once_and_later_ones_are_dropped_on_resume(tmp_path):
    records = Records(tmp_path, trainer_settings())
    for step in (1, 2, 3):
        records.write(step, {"train/loss": 1 / step})
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]  # not closed yet
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "trai')  # killed while writing
    resumed = Records(tmp_path, trainer_settings(), step=2)
    resumed.write(3, {"train/loss": 9.0})
    resumed.close()
    assert [(line["step"], line["train/loss"]) for line in metrics(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 9.0)]


def test_wandb_has_pictures_and_videos(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    records = Records(tmp_path, trainer_settings(wandb=True), name="run")
    picture, video = tmp_path / "grid.png", tmp_path / "video.mp4"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(picture)
    write_mp4(video, [np.full((16, 32, 3), 20 * frame, np.uint8) for frame in range(10)])
    records.picture(5, "imagined", picture)
    records.video(5, "evaluation/best", video)
    records.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    media = sorted(path for path in (run / "files" / "media").rglob("*") if path.is_file())
    assert [path.relative_to(run / "files" / "media").parts[0] for path in media] == ["images", "videos"]
    assert media[1].read_bytes() == video.read_bytes()
    with Image.open(media[0]) as shown:
        assert shown.size == (6, 4)


@pytest.mark.parametrize(("key", "mode"), [(None, "offline"), ("secret", "online")])
def test_wandb_is_offline_without_a_key(tmp_path, monkeypatch, key, mode):
    calls = {"log": []}

    def init(**options):
        calls["init"] = options
        return SimpleNamespace(log=lambda values, step: calls["log"].append((step, values)), finish=lambda: None)

    fake = SimpleNamespace(api=SimpleNamespace(api_key=key), init=init)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for _ in range(2):  # a run and its continuation share an identity
        records = Records(tmp_path, trainer_settings(wandb=True), name="run", config={"seed": 1})
        calls.setdefault("id", calls["init"]["id"])
        records.write(2, {"train/loss": 1.0})
        records.close()
    assert calls["init"]["mode"] == mode and calls["init"]["id"] == calls["id"]
    assert calls["init"]["config"] == {"seed": 1}
    assert calls["log"] == [(2, {"train/loss": 1.0})] * 2
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["train/loss"] == 1.0
