"""Training with torch.compile: the same losses, the same checkpoints."""

from functools import partialmethod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.workspace.fakes import build_loop, metrics, trainer_settings, training_settings
from unified_video_action.model.config import HeadConfig, ModelConfig, TransformerConfig
from unified_video_action.model.mar import Stack
from unified_video_action.model.uva import UVA
from unified_video_action.spec import Horizon, LatentShape, ModelSpec
from unified_video_action.workspace.loop import Periodic
from unified_video_action.workspace.train_state import prepare_for_training


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


def test_kernels_are_made_for_training_and_not_for_evaluations(tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append([tuple(value.shape) for value in inputs])
        return graph

    def look(step, records):
        before = len(graphs)
        with torch.no_grad():
            for rows in (1, 2, 3):
                loop.state.model["blocks"][0](torch.zeros(rows, 16))
        return {"compiled": float(len(graphs) - before)}

    torch.compiler.reset()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    loop = build_loop(tmp_path, trainer=trainer_settings(compile=True), periodic=[Periodic("look", 4, look)])
    loop.run()
    assert len(graphs) == 1  # two blocks of one kind and 20 steps of one shape
    assert [line["look/compiled"] for line in metrics(tmp_path) if "look/compiled" in line] == [0.0] * 5


@pytest.mark.parametrize("sharded", [False, True])
def test_networks_are_compiled_whole_but_block_by_block_where_parameters_are_gathered(sharded):
    spec = ModelSpec(Horizon(), LatentShape(4, 4, 4), action_dim=2, auxiliary_dim=6)
    head = HeadConfig(width=16, depth=1)
    model = UVA(spec, ModelConfig(TransformerConfig(dim=16, encoder_depth=1, decoder_depth=1, heads=2), head, head))
    prepare_for_training(model, compiled=True, sharded=sharded)
    compiled = {name for name, module in model.named_modules() if module._compiled_call_impl is not None}
    if sharded:
        lists = ("mar.encoder.blocks", "mar.decoder.blocks", "video_heads.0.net.blocks", "action_head.net.blocks")
        assert compiled == {f"{name}.0" for name in lists}
    else:
        assert compiled == {"mar", "video_heads.0.net", "action_head.net", "action_head.trunk", "auxiliary_head"}


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
