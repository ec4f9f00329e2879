"""scripts/train_pusht.py: where demonstrations come from, what it runs, and that it goes on where it was."""

from pathlib import Path

import pytest

from tests.loading import load_script
from unified_video_action.workspace.commands import read_config

script = load_script("train_pusht")


def test_sources_are_weighted_as_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path / "none"))
    human, recipe = tmp_path / "pusht" / "pusht.zip", script.read_recipe("uva_pusht_mini")
    human.parent.mkdir()
    human.touch()
    stores = [
        human.with_name(f"scripted_500_seed{seed}_disturbance{size}_choice1_mistakes0.02_action_noise0.zarr.zip")
        for seed, size in ((1, 6), (2, 3))
    ]
    for store in stores:
        store.touch()
    given = script.sources(recipe, tmp_path, human=True, scripted=True)
    config = read_config("uva_pusht_mini", [*recipe["overrides"], f"task.dataset.paths=[{','.join(given)}]"])
    read = {source["path"]: source["weight"] for source in config["task"]["dataset"]["paths"]}
    assert read == {str(human): 0.25, str(stores[0]): 0.35, str(stores[1]): 0.40}
    assert config["training"]["batch_size"] == 64 and config["training"]["ema"]["max_decay"] == 0.999
    assert script.sources(recipe, tmp_path, human=True, scripted=False) == [str(human)]
