"""Graphs of the accelerated model on a GPU. Skipped where there is none."""

import numpy as np
import pytest
import torch

from tests.inference.test_session import make_policy as acting_policy
from tests.model.conftest import EVERYTHING, PLAIN
from tests.model.test_acceleration import make_sample, noise
from unified_video_action.inference.session import PolicySession
from unified_video_action.model.denoiser import Denoiser
from unified_video_action.model.inputs import ModelInputs
from unified_video_action.model.samplers import Sampler
from unified_video_action.model.task_modes import TASK_MODES

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.usefixtures("exact_products"),
]


@pytest.mark.parametrize("sampler", ["ancestral16", "ddim10", "dpm10"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_graphs_equal_the_cpu(sampler: str, guidance: float) -> None:
    sample = make_sample(EVERYTHING)
    made = []
    for device in ("cpu", "cuda"):
        model = sample.model.to(device).accelerated()
        inputs = ModelInputs(**{name: value.to(device) for name, value in vars(sample.inputs).items()})
        options = dict(mode=TASK_MODES["policy_and_video"], sampler=Sampler.parse(sampler), guidance=guidance)
        for _ in range(3):  # the first call captures, the others replay
            made.append(model.sample(inputs, generator=noise(), **options))
    for other in made[1:]:
        assert (other.actions.cpu() - made[0].actions).abs().max() < 1e-3
        scale = made[0].frames.abs().max()
        assert (other.frames.cpu() - made[0].frames).abs().max() < 1e-3 * scale
    assert torch.equal(made[-1].actions, made[-2].actions)


def test_the_loop_never_waits_for_the_device() -> None:
    head = make_sample(PLAIN).model.cuda().action_head
    for sampler in (Sampler("ancestral", 5), Sampler("ddim", 5)):
        denoise = Denoiser(head, sampler, 1.0, torch.float32)
        cond, drawn = (torch.randn(*shape, device="cuda") for shape in ((8, 32), (sampler.noise_draws, 8, 2)))
        with torch.no_grad():
            denoise(cond, drawn)
            torch.cuda.set_sync_debug_mode("error")
            try:
                denoise(cond, drawn)
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_repeated_plans_hold_no_more_memory() -> None:
    session = PolicySession(acting_policy().to("cuda"))
    session.reset()
    observation = {"image": np.zeros((32, 32, 3), np.uint8), "agent_pos": np.zeros(2, np.float32)}
    used = []
    for _ in range(60):
        for _ in range(8):
            session.observe(observation)
        session.plan()
        used.append(torch.cuda.memory_allocated())
    assert used[-1] == used[20]
