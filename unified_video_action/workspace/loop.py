"""The training loop: steps, records, checkpoints, resume. It knows a policy and a dataset, no configuration."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from unified_video_action.evaluation.timing import matrix_rate
from unified_video_action.policy.base import BasePolicy
from unified_video_action.workspace import checkpoint as ckpt
from unified_video_action.workspace.batches import MicroBatch, StepBatches
from unified_video_action.workspace.optim import learning_rate_factor
from unified_video_action.workspace.process import PATIENCE, noted_signals
from unified_video_action.workspace.records import Periodic, Records
from unified_video_action.workspace.settings import TrainerSettings, TrainingSettings
from unified_video_action.workspace.train_state import TrainState, count_flops

logger = logging.getLogger(__name__)
FINISHED, OUT_OF_TIME = "all steps are done", "the time budget is used up"  # why a run ends, besides signals


class TrainingLoop:
    """Train a policy.

    A step is one global batch, whatever the number of processes and micro-batches: each loss is a sum over all rows
    divided by the weight of all rows. Masks and noise belong to the samples, and dropout is seeded again for every
    micro-batch, so nothing random outlives a step and resuming needs no random state.

    Args:
        policy: its `model` is trained and saved.
        dataset: samples by (index, seed), with `describe(index)`.
        output_dir: gets `checkpoints/`, one folder each.
        open_records: makes the run's records, given the step it continues from.
        files: text files that belong into every checkpoint, content by name.
    """

    def __init__(
        self,
        policy: BasePolicy,
        dataset: Dataset,
        training: TrainingSettings,
        trainer: TrainerSettings,
        seed: int,
        output_dir: Path,
        accelerator: Accelerator,
        open_records: Callable[[int], Records],
        periodic: Sequence[Periodic] = (),
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.training, self.trainer, self.accelerator = training, trainer, accelerator
        self.root = Path(output_dir) / "checkpoints"
        self.open_records, self.periodic, self.files = open_records, periodic, dict(files or {})
        rank, world = accelerator.process_index, accelerator.num_processes
        self.batches = StepBatches(dataset, policy, training, seed, trainer.micro_batch, rank, world)
        self.terms = self.batches.loss_terms()
        if trainer.compile and self.batches.share % self.batches.parts:
            raise ValueError(
                f"trainer.compile=true needs micro-batches of equal size, but a process's {self.batches.share} samples "
                f"are cut into {self.batches.parts}; choose a trainer.micro_batch that divides them"
            )
        self.flops_per_sample = count_flops(policy, self.batches.first())
        self.state = TrainState(policy, training, trainer, accelerator, self.terms)
        self.step = 0  # optimiser steps done
        self.saved: int | None = None  # step of the newest checkpoint
        self.seconds = 0.0  # spent on this run by earlier processes
        self.waited = 0.0  # seconds for the loader, since the losses were looked at last
        self.unread: list[Tensor] = []  # losses of the newest steps, not yet brought from the device

    def run(self) -> str:
        """Train to the end, or until a signal or the time budget; return which of them it was."""
        self.restore()
        first = self.step
        self.last = last = max(first, min(self.training.steps, self.trainer.max_steps or self.training.steps))
        main, pin = self.accelerator.is_main_process, self.accelerator.device.type == "cuda"
        quiet = 1.0 if sys.stderr.isatty() else 30.0  # seconds between two drawings of the bar
        self.bar = tqdm(total=last, initial=first, unit="step", disable=not main, mininterval=quiet, dynamic_ncols=True)
        self.records = self.open_records(self.step) if main else None
        self.talk = None  # between the processes' hosts, so that nobody waits for a device
        if self.accelerator.num_processes > 1:
            self.talk = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        peak = self.trainer.peak_tflops
        self.peak = 1e12 * peak if peak else matrix_rate(self.accelerator.device, self.accelerator.mixed_precision)
        self.state.train()
        self.started = self.mark = time.perf_counter()
        stop = None
        try:
            loader = closing(self.batches.loader(first, last, self.trainer.num_workers, pin))
            with self.bar, noted_signals() as signals, loader as steps:
                if self.step:
                    self.between_steps(self.undone())  # when an earlier process ended
                for micro_batches in self.on_device(steps):
                    weights, time_used, stop = self.agree(micro_batches, signals[-1] if signals else None)
                    if stop:
                        break
                    self.train_step(micro_batches, weights, time_used)
                    self.bar.update()
                    if self.step % self.trainer.log_every == 0:
                        self.look_at_losses()
                    if signals and self.accelerator.num_processes == 1:
                        continue  # to the stop, without beginning an evaluation
                    self.between_steps([task for task in self.periodic if self.step % task.every == 0])
                self.save()
                if stop in (None, OUT_OF_TIME):
                    self.between_steps(self.undone(last=True))
        finally:
            if self.records:
                self.records.close()
        logger.info("Stopped after step %d: %s. Checkpoint: %s", self.step, stop or FINISHED, self.root / "latest")
        return stop or FINISHED

    def on_device(self, steps: Iterator[list[MicroBatch]]) -> Iterator[list[MicroBatch]]:
        """Steps whose copy to the device has begun; how long the host had to wait for them adds up in `waited`."""
        while True:
            began = time.perf_counter()
            made = next(steps, None)
            self.waited += time.perf_counter() - began
            if made is None:
                return
            yield [micro_batch.to(self.accelerator.device) for micro_batch in made]

    # -- one step ------------------------------------------------------------------------------------------------------

    def train_step(self, micro_batches: list[MicroBatch], weights: Mapping[str, Tensor], time_used: float) -> None:
        """Do one optimiser step, given what `agree` returned."""
        rate = self.training.optimizer.learning_rate * learning_rate_factor(
            self.training.schedule, self.step, self.training.steps, time_used
        )
        total = torch.zeros(len(self.terms) + 1, device=self.accelerator.device)
        for number, micro_batch in enumerate(micro_batches, start=1):
            torch.manual_seed(micro_batch.seed)
            losses = self.state.backward(micro_batch, weights, last=number == len(micro_batches))
            total += torch.stack([losses.get(name, total.new_zeros(())).detach() for name in ("loss", *self.terms)])
        norm = self.state.update(self.step + 1, rate, weights)
        norm = total.new_tensor(math.nan) if norm is None else norm.to(total)
        self.unread.append(torch.cat([total, norm.reshape(1)]))
        self.step += 1

    def agree(self, micro_batches: list[MicroBatch], signal: str | None) -> tuple[dict[str, Tensor], float, str | None]:
        """What all processes must know alike before a step.

        Returns:
            the weight of each loss term in the global batch, the share of the time budget used, and why to stop, if so.
        """
        weights = [sum(part.weights.get(name, 0.0) for part in micro_batches) for name in self.terms]
        seconds = self.elapsed()
        if self.accelerator.num_processes > 1:
            mine = seconds if self.accelerator.is_main_process else 0.0
            values = torch.tensor([*weights, mine, float(signal is not None)])
            torch.distributed.all_reduce(values, group=self.talk)
            *weights, seconds, signals = values.tolist()
            signal = signal or ("signal to another process" if signals else None)
        budget = self.trainer.time_budget_minutes
        time_used = seconds / (60 * budget) if budget else 0.0
        stop = signal or (OUT_OF_TIME if time_used >= 1 else None)
        return dict(zip(self.terms, torch.tensor(weights).unbind())), time_used, stop

    def elapsed(self) -> float:
        """Seconds spent on this run, earlier processes included."""
        return self.seconds + time.perf_counter() - self.started

    # -- between steps -------------------------------------------------------------------------------------------------

    def look_at_losses(self) -> None:
        """Bring the losses of the last steps from the device and record their means.

        Raises:
            FloatingPointError: one is not finite; with the step and its samples.
        """
        if not self.unread:
            return
        values = torch.stack(self.unread).double()  # (steps, 1 + terms + 1)
        self.unread.clear()
        if self.accelerator.num_processes > 1:
            values[:, :-1] = self.accelerator.reduce(values[:, :-1].contiguous(), "sum")
        values, names = values.cpu(), ("loss", *self.terms)
        for step, row in enumerate(values[:, :-1].tolist(), start=self.step - len(values)):
            if not all(map(math.isfinite, row)):
                raise FloatingPointError(
                    f"the loss of step {step} is not finite: "
                    + ", ".join(f"{name} {value:g}" for name, value in zip(names, row))
                    + f"\nNothing was saved since the last good checkpoint in {self.root}. The samples of the step:\n"
                    + self.batches.describe(step)
                )

        mean = dict(zip(names, values[:, :-1].mean(0).tolist()))
        now = time.perf_counter()
        seconds, self.mark = now - self.mark, now
        rate = self.training.batch_size * len(values) / seconds
        metrics = {f"train/{name}": value for name, value in mean.items()}
        metrics |= {
            "train/learning_rate": self.state.optimizer.param_groups[0]["lr"],
            "train/samples_per_second": rate,
            "train/mfu": rate * self.flops_per_sample / (self.peak * self.accelerator.num_processes),
            "train/waiting": self.waited / seconds,
        }
        self.waited = 0.0
        if math.isfinite(norm := float(values[:, -1].mean())):
            metrics["train/gradient_norm"] = norm
        if self.records:
            self.records.write(self.step, metrics)
        shown = {name: f"{value:.4f}" for name, value in mean.items()}
        self.bar.set_postfix(shown | {"samples/s": f"{rate:.0f}"}, refresh=False)
        if budget := self.trainer.time_budget_minutes:  # the bar counts steps: guess how many the time allows
            self.bar.total = min(self.last, round(self.step * 60 * budget / self.elapsed()))

    def undone(self, last: bool = False) -> list[Periodic]:
        """What is due after this step, all of it if it is the last one, and is not on record: all processes know."""
        done = [self.records.done(self.step) if self.records else None]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(done)
        due = [task for task in self.periodic if self.step and (last or self.step % task.every == 0)]
        return [task for task in due if task.name not in done[0]]

    def between_steps(self, due: Sequence[Periodic]) -> None:
        """Save when it is time, or when a score is about to be measured; then do what is due."""
        every = self.trainer.checkpoint_every
        scored = any(self.trainer.monitor.startswith(f"{task.name}/") for task in due)
        saves = scored or (every is not None and self.step % every == 0)
        if saves:
            self.look_at_losses()
        began = time.perf_counter()
        if saves:
            self.save()
        if due:
            metrics: dict[str, float] = {}
            with self.state.averaged():
                for task in due:
                    if task.together or self.records:
                        found = task.run(self.step, self.records)
                        metrics |= {f"{task.name}/{name}": value for name, value in found.items()}
            if self.records:
                self.records.write(self.step, metrics, done=[task.name for task in due])
                if (score := metrics.get(self.trainer.monitor)) is not None:
                    ckpt.record_score(self.root, self.step, score)
                    ckpt.prune(self.root, self.trainer.keep_top_k, self.trainer.monitor_mode)
            self.accelerator.wait_for_everyone()
        self.mark += time.perf_counter() - began  # samples per second are those of training

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of the current step, unless there is one.

        Raises:
            FloatingPointError: weights that a gradient has ruined although every loss was finite.
        """
        if self.saved == self.step:
            return
        self.look_at_losses()  # nothing bad is ever saved
        tensors = self.state.tensors()
        if self.accelerator.is_main_process:
            weights = tensors["model.safetensors"].values()
            if not all(torch.isfinite(value).all() for value in weights if value.is_floating_point()):
                raise FloatingPointError(
                    f"after step {self.step - 1} the weights are not finite, although the losses are: a gradient has "
                    f"overflowed. The last good checkpoint in {self.root} is untouched. A lower "
                    "training.optimizer.learning_rate, training.optimizer.clip=1 or trainer.precision=no may help"
                )
            scaler = self.accelerator.scaler
            state = {"elapsed_seconds": self.elapsed(), "scaler": scaler.state_dict() if scaler else None}
            ckpt.write_checkpoint(self.root, self.step, tensors, self.files, state)
            ckpt.prune(self.root, self.trainer.keep_top_k, self.trainer.monitor_mode)
        self.saved = self.step
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Continue from the newest complete checkpoint, if there is one.

        Raises:
            ValueError: there is one, but `trainer.resume` is off, or it does not fit; or there are only damaged ones.
        """
        folder = ckpt.newest(self.root)
        self.accelerator.wait_for_everyone()  # nobody looks for checkpoints any more
        if self.accelerator.is_main_process:
            ckpt.remove_unfinished(self.root)
        if folder is None:
            return
        if not self.trainer.resume:
            raise ValueError(f"trainer.resume=false, but {folder} exists; choose another output_dir, or remove it")
        state = ckpt.read_state(folder)
        self.state.load(folder)
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = self.saved = state["step"]
        self.seconds = state["elapsed_seconds"]
        logger.info("Continuing from %s", folder)
