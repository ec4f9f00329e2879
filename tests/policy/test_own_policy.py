"""docs/your_own_policy.md, carried out."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.shrunk import read
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.build import load_policy
from unified_video_action.workspace.commands import ROOT
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace


def test_the_policy_of_the_docs_trains_and_acts(
    pusht_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "your_own_policy.md").read_text()
    code, settings = re.search(r"```python\n(.*?)```", page, re.S)[1], re.search(r"```yaml\n(.*?)```", page, re.S)[1]
    assert code.count("\n") < 80
    (tmp_path / "my_policies.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("UVA_PLUGINS", "my_policies")
    overrides = [
        *(f"output_dir={tmp_path / 'run'}", f"task.dataset.paths={pusht_store}", "training.batch_size=4"),
        *(
            "trainer.max_steps=2",
            "trainer.num_workers=0",
            "trainer.tensorboard=false",
            "trainer.prediction_grid_every=null",
            "trainer.evaluate_every=null",
        ),
        *("trainer.validate_every=2", "trainer.validation_windows=2", "trainer.micro_batch=null"),
        *("task.dataset.augmentation=false", "data.n_views=1"),
    ]
    config = OmegaConf.create(read("uva_pusht", *overrides))
    config.policy = OmegaConf.create(settings).policy
    config.data.frames = "cached"
    TrainUnifiedVideoActionWorkspace(config).run()
    assert '"validation/action_error"' in (tmp_path / "run" / "metrics.jsonl").read_text()
    policy = load_policy(tmp_path / "run" / "checkpoints" / "latest")
    assert type(policy) is sys.modules["my_policies"].Cloning
    session = PolicySession(policy)
    session.reset()
    session.observe({"image": np.zeros((96, 96, 3), np.uint8)})
    assert session.plan().shape == (1, 16, 2)
