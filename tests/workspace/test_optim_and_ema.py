"""Parameter groups, learning rates and averages against their definitions."""

import pytest
import torch
from torch import nn

from unified_video_action.workspace.optim import Ema, build_optimizer, learning_rate_factor, parameter_groups
from unified_video_action.workspace.settings import EmaSettings, OptimizerSettings, ScheduleSettings


def test_matrices_decay_and_vectors_do_not():
    module = nn.ModuleDict({"conv": nn.Conv1d(2, 3, 3), "norm": nn.LayerNorm(4), "frozen": nn.Linear(2, 2)})
    module.register_parameter("table", nn.Parameter(torch.zeros(1, 5, 2)))
    module["frozen"].requires_grad_(False)
    vectors, matrices = parameter_groups(module, OptimizerSettings(weight_decay=0.02))
    assert vectors["weight_decay"] == 0 and matrices["weight_decay"] == 0.02
    assert [p.shape for p in vectors["params"]] == [(3,), (4,), (4,)]
    assert {p.shape for p in matrices["params"]} == {(3, 2, 3), (1, 5, 2)}
    optimizer = build_optimizer(module, OptimizerSettings(learning_rate=3e-4))
    assert optimizer.defaults["fused"] and optimizer.defaults["lr"] == 3e-4


def test_layers_with_many_inputs_learn_more_slowly():
    module = nn.ModuleDict({"narrow": nn.Linear(4, 6), "wide": nn.Linear(32, 6), "conv": nn.Conv2d(4, 2, 3)})
    module.register_parameter("token", nn.Parameter(torch.zeros(1, 64)))  # no layer: its width is none of inputs
    groups = parameter_groups(module, OptimizerSettings(fan_in=8))
    scales = {
        name: group["scale"]
        for name, p in module.named_parameters()
        for group in groups
        if any(p is q for q in group["params"])
    }
    assert scales.pop("wide.weight") == 8 / 32 and scales.pop("conv.weight") == 8 / 36
    assert set(scales.values()) == {1.0} and "token" in scales


def test_cosine_equals_diffusers():
    from diffusers.optimization import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_cosine_schedule_with_warmup(optimizer, 10, 50)
    for step in range(50):
        expected = reference.get_last_lr()[0]
        assert learning_rate_factor(ScheduleSettings(warmup_steps=10), step, 50) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        reference.step()


def test_average_follows_the_schedule_of_diffusers():
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    reference = EMAModel(module.parameters(), decay=0.9, power=0.75, use_ema_warmup=True, inv_gamma=1.0)
    ema = Ema(module, EmaSettings(power=0.75, max_decay=0.9))
    for update in range(1, 40):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        reference.step(module.parameters())
        ema.update(update)
        for mine, theirs in zip(ema.weights.values(), reference.shadow_params):
            torch.testing.assert_close(mine, theirs)
