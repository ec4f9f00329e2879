"""How long training takes: its step by part, its loader, several processes."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor

from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.evaluation.synthetic import SyntheticWindows
from unified_video_action.evaluation.timing import Bench, Times, matrix_rate
from unified_video_action.policy.base import BasePolicy
from unified_video_action.workspace.batches import PREFETCH, MicroBatch, StepBatches
from unified_video_action.workspace.optim import Ema, build_optimizer
from unified_video_action.workspace.process import build_accelerator
from unified_video_action.workspace.settings import TrainerSettings, TrainingSettings
from unified_video_action.workspace.train_state import TrainState, count_flops, prepare_for_training

Measured = dict[str, Any]


def time_training(
    policy: BasePolicy, bench: Bench, training: TrainingSettings, workers: int = 0, compiled: bool = False
) -> Measured:
    """Time optimiser steps of one process on synthetic windows. Changes the policy's weights.

    Returns:
        ms: rows of a step's parts and its total; matrix_tflops: rate of a large matrix product; mfu: share of it that
        the model's own operations reach; waiting: share of the time in which the step waits for its batch; ...
    """
    policy.train()
    batches = StepBatches(SyntheticWindows(policy), policy, training, seed=0)
    flops = count_flops(policy, batches.first())
    loader = batches.loader(0, 1 + bench.warmup + bench.repeats, workers, bench.device.type == "cuda")
    optimizer, ema = build_optimizer(policy.model, training.optimizer), Ema(policy.model, training.ema)
    losses: dict[str, Tensor] = {}
    steps: list[MicroBatch] = []

    def load() -> None:
        steps[:] = [part.to(bench.device) for part in next(loader)]

    def forward() -> None:
        with bench.autocast():
            losses.update(policy(steps[0].batch, steps[0].weights))

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()
        ema.update(1)

    def measure() -> Times:
        times = {
            "waiting": bench.time(load),
            "forward": bench.time(forward),
            "backward": bench.time(lambda: losses["loss"].backward()),
            "optimizer and EMA": bench.time(update),
        }
        return {**times, "total": sum(times.values())}

    load()  # the loader's start does not count
    prepare_for_training(policy.model, compiled)
    rows = bench.summarise(measure)
    rate = training.batch_size * 1000 / rows["total"]["median"]
    peak = matrix_rate(bench.device, bench.precision)
    return {
        "batch": training.batch_size,
        "ms": rows,
        "samples_per_second": rate,
        "matrix_tflops": peak / 1e12,
        "tflop_per_sample": flops / 1e12,
        "mfu": flops * rate / peak,
        "waiting": rows["waiting"]["median"] / rows["total"]["median"],
    }


def time_loader(
    policy: BasePolicy, bench: Bench, training: TrainingSettings, dataset: WindowDataset, workers: int
) -> Measured:
    """Time the making of batches from stored data, as fast as they are asked for.

    Returns:
        ms: one row, a step of `batch` samples; rates over all repeats, the start of the workers left out.
    """
    first = bench.warmup + 2 * PREFETCH * workers  # what was ready before the clock began does not count
    loader = StepBatches(dataset, policy, training, seed=0).loader(0, first + bench.repeats, workers)
    for _ in range(first):
        next(loader)
    began = time.perf_counter()
    rows = Bench(bench.device, "no", bench.repeats, 0).summarise(lambda: {"total": bench.time(lambda: next(loader))})
    rate = bench.repeats * training.batch_size / (time.perf_counter() - began)
    found = {"batch": training.batch_size, "ms": rows, "samples_per_second": rate}
    return found | ({"samples_per_second_per_worker": rate / workers} if workers else {})


def time_scaling(policy: BasePolicy, bench: Bench, training: TrainingSettings, trainer: TrainerSettings) -> Measured:
    """Time steps of this process alone and of all processes together, each with `training.batch_size` samples.

    All processes that torchrun has started call this; while the first one works alone the others wait.

    Returns:
        processes, sharding; samples_per_second of `one` and of `all`; efficiency: what a process does in company as a
        share of what it does alone.

    Raises:
        ValueError: there is one process only.
    """
    accelerator = build_accelerator(trainer)
    world = accelerator.num_processes
    if world == 1:
        raise ValueError("--only scaling compares processes: torchrun --nproc-per-node N scripts/benchmark.py ...")
    batches = StepBatches(SyntheticWindows(policy), policy, training, seed=0)
    alone = 0.0
    if accelerator.is_main_process:
        times = time_training(copy.deepcopy(policy).to(accelerator.device), bench, training)
        alone = times["samples_per_second"]
    accelerator.wait_for_everyone()
    state = TrainState(policy, training, trainer, accelerator, batches.loss_terms())
    state.train()
    loader = batches.loader(0, bench.warmup + bench.repeats)

    def step() -> None:
        (inputs,) = (part.to(accelerator.device) for part in next(loader))
        weights = {name: torch.tensor(world * weight) for name, weight in inputs.weights.items()}
        state.backward(inputs, weights, last=True)
        state.update(1, training.optimizer.learning_rate, weights)

    rows = bench.summarise(lambda: {"total": bench.time(step)})
    together = world * training.batch_size * 1000 / rows["total"]["median"]
    return {
        "processes": world,
        "sharding": trainer.sharding,
        "batch": training.batch_size,
        "ms": rows,
        "samples_per_second": {"one": alone, "all": together},
        "efficiency": together / (world * alone) if alone else None,
    }
