"""Training with torch.compile: the same losses, the same checkpoints."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.workspace.fakes import build_loop, metrics, trainer_settings, training_settings
from unified_video_action.model.config import TransformerConfig
from unified_video_action.model.mar import Stack


def losses(folder: Path) -> list[float]:
    return [line["train/loss"] for line in metrics(folder) if "train/loss" in line]


def test_compiled_equals_eager_and_eager_continues_its_checkpoint(tmp_path):
    build_loop(tmp_path / "eager").run()
    loop = build_loop(tmp_path / "mixed", trainer=trainer_settings(compile=True, max_steps=8))
    loop.run()
    assert all(block._compiled_call_impl is not None for block in loop.state.model["blocks"])
    build_loop(tmp_path / "mixed").run()
    assert losses(tmp_path / "mixed") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)
    eager, mixed = (
        load_file(tmp_path / name / "checkpoints" / "latest" / "ema.safetensors") for name in ("eager", "mixed")
    )
    assert eager.keys() == mixed.keys()
    for name, value in eager.items():
        torch.testing.assert_close(mixed[name], value, rtol=1e-3, atol=1e-5)


def test_a_compiled_transformer_with_checkpointing_computes_what_the_eager_one_does():
    config = TransformerConfig(16, 1, 1, 2, dropout=0.0, attention_dropout=0.0, gradient_checkpointing=True)
    torch.manual_seed(0)
    stack = Stack(1, config)
    x = torch.randn(2, 5, 16)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(1)
        out = stack(x)
        return [out, *torch.autograd.grad(out.square().sum(), list(stack.parameters()))]

    eager = gradients()
    stack.compile(dynamic=False, backend="aot_eager_decomp_partition")  # all but the making of kernels
    for found, expected in zip(gradients(), eager, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_unequal_micro_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a process's 10 samples are cut into 3"):
        build_loop(tmp_path, training_settings(batch_size=10), trainer_settings(compile=True, micro_batch=4))
