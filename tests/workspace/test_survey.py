"""What a sample costs and trains, counted without computing."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.workspace.fakes import FakePolicy, Points, training_settings
from unified_video_action.evaluation.timing import matrix_rate
from unified_video_action.model.task_modes import TASK_MODES, ModeMix
from unified_video_action.workspace.batches import StepBatches
from unified_video_action.workspace.survey import Survey


def survey(fake: FakePolicy, **quotas: float) -> Survey:
    training = training_settings(mode_mix=ModeMix(quotas or dict.fromkeys(TASK_MODES, 1.0)))
    return Survey(fake, StepBatches(Points(), fake, training, seed=0))


def test_modes_train_what_has_a_gradient_and_nothing_is_computed_or_changed():
    policy = FakePolicy(dropout=0.5).train()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    found = survey(policy)
    names = [name for name, _ in policy.model.named_parameters()]
    acting = {name for name in names if not name.startswith(("video", "idle"))}
    assert found.work["policy"].parameters == found.work["inverse_dynamics"].parameters == acting
    assert found.trained == {name for name in names if not name.startswith("idle")}
    assert found.shared == {name for name in names if name.startswith(("trunk", "blocks"))}
    assert found.reach(["policy", "video"]) == found.trained
    assert policy.training and all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert all(parameter.grad is None and parameter.device.type == "cpu" for parameter in policy.parameters())


def test_operations_are_those_of_a_real_pass():
    policy = FakePolicy()
    batches = StepBatches(Points(), policy, training_settings(), seed=0)
    counted = {}
    for name in ("policy", "policy_and_video"):
        sample = batches.sample(TASK_MODES[name])
        with FlopCounterMode(display=False) as counter:
            policy(sample.batch, sample.draws, sample.weights)["loss"].backward()
        counted[name] = counter.get_total_flops()
    found = survey(policy, policy=3, policy_and_video=1)
    assert {name: work.flops for name, work in found.work.items()} == counted
    assert found.flops_per_sample == (3 * counted["policy"] + counted["policy_and_video"]) / 4
    assert set(found.work) == {"policy", "policy_and_video"}


def test_the_matrix_rate_is_that_of_a_machine():
    for precision in ("no", "bf16"):
        assert 1e8 < matrix_rate(torch.device("cpu"), precision) < 1e14
