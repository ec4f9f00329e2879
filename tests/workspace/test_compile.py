"""Training with torch.compile: the same losses, the same checkpoints."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.workspace.fakes import build_loop, metrics, trainer_settings, training_settings
from unified_video_action.workspace.loop import Periodic


def losses(folder: Path) -> list[float]:
    return [line["train/loss"] for line in metrics(folder) if "train/loss" in line]


def test_compiled_equals_eager_and_eager_continues_its_checkpoint(tmp_path):
    build_loop(tmp_path / "eager").run()
    loop = build_loop(tmp_path / "mixed", trainer=trainer_settings(compile=True, max_steps=8))
    loop.run()
    assert all(block._compiled_call_impl is not None for block in loop.trainee.model["blocks"])
    build_loop(tmp_path / "mixed").run()
    assert losses(tmp_path / "mixed") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)
    eager, mixed = (
        load_file(tmp_path / name / "checkpoints" / "latest" / "ema.safetensors") for name in ("eager", "mixed")
    )
    assert eager.keys() == mixed.keys()
    for name, value in eager.items():
        torch.testing.assert_close(mixed[name], value, rtol=1e-3, atol=1e-5)


def test_kernels_are_made_for_training_and_not_for_evaluations(tmp_path):
    graphs = []

    def backend(graph, inputs):
        graphs.append([tuple(value.shape) for value in inputs])
        return graph

    def look(step, records):
        before = len(graphs)
        with torch.no_grad():
            for rows in (1, 2, 3):
                loop.trainee.model["blocks"][0](torch.zeros(rows, 16))
        return {"compiled": float(len(graphs) - before)}

    loop = build_loop(tmp_path, trainer=trainer_settings(compile=True), periodic=[Periodic("look", 4, look)])
    torch.compiler.reset()
    for block in loop.trainee.model["blocks"]:
        block.compile(backend=backend, dynamic=False)
    loop.run()
    assert len(graphs) == 1  # two blocks of one kind and 20 steps of one shape
    assert [line["look/compiled"] for line in metrics(tmp_path) if "look/compiled" in line] == [0.0] * 5


def test_unequal_micro_batches_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="needs micro-batches of equal size, but a process's 10 samples are cut into 3"
    ):
        build_loop(tmp_path, training_settings(batch_size=10), trainer_settings(compile=True, micro_batch=4))
