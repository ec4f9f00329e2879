"""The same results on a GPU. Skipped where there is none."""

import pytest
import torch

from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.workspace.batches import map_leaves

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.usefixtures("exact_products"),
]


def noise():
    return [torch.Generator().manual_seed(i) for i in range(3)]


@pytest.mark.parametrize("sampler", ["ancestral16", "ddim10", "dpm10"])
def test_actions_and_frames_equal_those_of_the_cpu(make_policy, obs, sampler):
    expected = make_policy().predict_action_and_video(obs, noise(), sampler)
    made = make_policy().to("cuda").predict_action_and_video(obs, noise(), sampler)
    assert torch.allclose(made["action_pred"].cpu(), expected["action_pred"], atol=0.05)  # of 512 pixels
    assert torch.allclose(made["latents"].cpu(), expected["latents"], atol=1e-2)


def test_losses_and_gradients_equal_those_of_the_cpu(make_policy, batch):
    results = []
    for device in ("cpu", "cuda"):
        policy = make_policy().to(device)
        prepared = policy.with_modes(batch, [TASK_MODES["policy_and_video"]] * 3)
        losses = policy(map_leaves(prepared, torch.Tensor, lambda tensor, to=device: tensor.to(to)))
        losses["loss"].backward()
        norm = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()
        results.append({name: loss.item() for name, loss in losses.items()} | {"gradient": norm.item()})
    assert results[0] == pytest.approx(results[1], rel=1e-3)
