"""Which samples, modes and noise a step has depends on the seed and the step alone."""

import pytest
import torch

from tests.workspace.fakes import FakePolicy, Points, training_settings
from unified_video_action.dataset.frame_readers import StoredLatents
from unified_video_action.model.task_modes import ModeMix
from unified_video_action.workspace.batches import MicroBatch, StepBatches, map_leaves


def batches(dataset=None, mode_mix: ModeMix | None = None, **options) -> StepBatches:
    return StepBatches(dataset or Points(), FakePolicy(mode_mix=mode_mix), training_settings(), seed=3, **options)


def steps(first: int, last: int, workers: int = 0, **options) -> list[list[MicroBatch]]:
    return list(batches(**options).loader(first, last, workers))


def tensors(parts) -> list[torch.Tensor]:
    found = []
    map_leaves(parts, torch.Tensor, lambda tensor: found.append(tensor) or tensor)
    return found


def test_any_number_of_workers_and_any_first_step_give_the_same_batches():
    alone, late = steps(0, 20), steps(6, 20, workers=2)
    assert len(alone) == 20 and len(late) == 14
    for mine, theirs in zip(alone[6:], late):
        assert all(torch.equal(a, b) for a, b in zip(tensors(mine), tensors(theirs), strict=True))


def test_processes_and_micro_batches_cut_the_same_batch():
    (whole,) = steps(2, 3)
    shares = [steps(2, 3, micro_batch=4, rank=rank, world=2)[0] for rank in range(2)]
    assert [[len(part.batch["x"]) for part in share] for share in shares] == [[3, 3], [3, 3]]
    cut = [part for share in shares for part in share]
    for name in ("x", "index", "noise"):
        assert torch.equal(torch.cat([part.batch[name] for part in cut]), whole[0].batch[name])
    for name, weight in whole[0].weights.items():
        assert sum(part.weights.get(name, 0) for part in cut) == weight
    assert [index for index, _ in batches(rank=1, world=2).whole(2)] == whole[0].batch["index"].tolist()


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match=r"training.batch_size=12 cannot be shared equally by 5 processes"):
        batches(world=5)


class Stored(Points):
    """Points with a latent each, stored in half precision."""

    def stored(self, keys: list[tuple[int, int]]) -> dict:
        values = torch.tensor([seed % 1000 for _, seed in keys]).reshape(-1, 1, 1, 1, 1).half().expand(-1, 3, 2, 4, 4)
        shift, scale = torch.tensor([1.0, 2.0]).reshape(2, 1, 1), torch.tensor([0.5, 3.0]).reshape(2, 1, 1)
        return {**self.__getitems__(keys), "future": StoredLatents(values, shift, scale)[:, 1:]}


@pytest.mark.parametrize("workers", [0, 1])
def test_stored_latents_travel_in_half_the_bytes_and_come_out_scaled(workers):
    for parts in steps(0, 5, workers, dataset=Stored()):
        assert parts[0].batch["future"].values.dtype == torch.float16
        batch = parts[0].to("cpu").batch
        numbers = (batch["seed"] % 1000).float()
        expected = torch.stack([(numbers - 1) * 0.5, (numbers - 2) * 3], dim=1)  # (B, 2)
        assert batch["future"].dtype == torch.float32 and batch["future"].shape == (12, 2, 2, 4, 4)
        assert torch.equal(batch["future"], expected[:, None, :, None, None].expand(12, 2, 2, 4, 4))
