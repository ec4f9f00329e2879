"""Batches come as they are, and waiting for them is counted."""

import time

import pytest
import torch

from unified_video_action.workspace.feeding import Feed
from unified_video_action.workspace.packing import pack


def slow(count: int, seconds: float = 0.0):
    for number in range(count):
        time.sleep(seconds)
        yield pack([{"x": torch.full((3,), float(number))}])


def test_steps_come_in_order_and_waiting_is_counted_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("unified_video_action.workspace.feeding.time.perf_counter", lambda: clock[0])

    def loader():
        for packed in slow(5):
            clock[0] += 2
            yield packed

    feed, seen = Feed(loader(), torch.device("cpu")), []
    for step in feed:
        seen.append(step[0]["x"].tolist())
        clock[0] += 5  # computing is not waiting
    assert seen == [[float(number)] * 3 for number in range(5)]
    assert feed.waited() == 5 * 2
    assert feed.waited() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_next_step_is_copied_while_one_computes():
    device = torch.device("cuda")
    steps = (packed.pin_memory() for packed in slow(6))
    feed, seen = Feed(steps, device), []
    for step in feed:
        seen.append(step[0]["x"] * torch.ones(1, device=device))
    assert [values.tolist() for values in seen] == [[float(number)] * 3 for number in range(6)]
    torch.cuda.synchronize()
    assert feed.waited() >= 0 and feed.waited() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_device_that_waits_for_the_loader_is_found_waiting():
    feed = Feed((packed.pin_memory() for packed in slow(6, 0.05)), torch.device("cuda"))
    for step in feed:
        step[0]["x"].sum()
    torch.cuda.synchronize()
    assert feed.waited() > 0.15
