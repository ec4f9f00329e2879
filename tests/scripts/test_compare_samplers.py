"""scripts/compare_samplers.py on a model of a few thousand weights."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.loading import load_script
from unified_video_action.evaluation.distributions import energy_distance

FEW = ["--observations", "4", "--samples", "5", "--repeats", "1", "--device", "cpu"]
script = load_script("compare_samplers")


def test_the_table_has_every_sampler_and_starts_with_the_reference(
    trained_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--checkpoint", str(trained_run / "checkpoints/latest"), "--json", str(tmp_path / "s.json"), *FEW]
    with caplog.at_level("INFO"):
        script.main([*words, "--reference", "ddim3", "--samplers", "ddim2", "--n-episodes", "2"])
    results = json.loads((tmp_path / "s.json").read_text())
    assert list(results["samplers"]) == ["ddim3", "ddim2"]
    assert (results["observations"], results["samples"], results["reference"]) == (4, 5, "ddim3")
    for row in results["samplers"].values():
        assert 0 < row["head_ms"] and 0 < row["plan_ms"] and 0 < row["spread"]
        assert 0 <= row["mean_score_low"] <= row["mean_score"] <= 1 and row["episodes"] == 2
    lines = [line for line in caplog.text.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| sampler | energy |") and len(lines) == 4 and lines[2].startswith("| ddim3 (again)")


class Dice:
    """A policy whose chunks lie around the observed position: the wider, the fewer steps its sampler has."""

    normalizer = SimpleNamespace(scale=lambda name: torch.tensor([0.5, 0.25]))
    rows: tuple[int, ...] = ()

    def predict_action(self, obs: dict[str, Any], generator: torch.Generator, sampler: str) -> dict[str, torch.Tensor]:
        position = obs["agent_pos"]  # (B, 1, 2)
        assert len(position) == len(obs["image"])
        self.rows += (len(position),)
        noise = torch.randn(len(position), 16, 2, generator=generator)
        return {"action_pred": position + noise / int(sampler.removeprefix("ddim")) * torch.tensor([2.0, 4.0])}


@pytest.mark.parametrize("samples", [40, 300])
def test_chunks_are_drawn_for_each_observation_and_normalised(samples: int) -> None:
    dice = Dice()
    positions = torch.tensor([[[10.0, 20.0]], [[30.0, 40.0]], [[50.0, 60.0]]])
    obs = {"image": torch.zeros(3, 4, 1, 1, 1), "agent_pos": positions}
    first, same, wider = (
        script.draw(dice, obs, sampler, samples, seed) for seed, sampler in enumerate(("ddim8", "ddim8", "ddim2"))
    )
    assert first.shape == (3, samples, 32) and max(dice.rows) <= max(256, samples)
    wanted = (positions * torch.tensor([0.5, 0.25])).expand(3, 16, 2).flatten(1)
    torch.testing.assert_close(first.mean(1), wanted, atol=0.1, rtol=0)
    assert energy_distance(first, wider).mean() > 20 * abs(energy_distance(first, same).mean())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "1"], "--samples: must be at least 2, got 1"),
        (["--samplers", "magic3"], "must be ancestral, ddim, dpm or euler, got 'magic'"),
        (["--checkpoint", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_mistakes_are_named(
    trained_run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        script.main(["--checkpoint", str(trained_run / "checkpoints/latest"), *FEW, *arguments])
    assert message in capsys.readouterr().err
