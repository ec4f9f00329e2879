"""metrics.jsonl, TensorBoard and wandb."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.workspace.fakes import metrics, trainer_settings
from unified_video_action.workspace.records import Records


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


def test_tensorboard_has_curves_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = tmp_path / "sheet.png"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(picture)
    records = Records(tmp_path, trainer_settings(tensorboard=True))
    records.write(5, {"train/loss": 0.25})
    records.picture(5, "imagined", picture)
    records.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(5, 0.25)]
    assert events.Images("imagined")[0].width == 6


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
