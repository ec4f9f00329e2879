"""The training loop, in this process, on a policy of a few numbers."""

import multiprocessing
import os
import re
import signal

import pytest
import torch

from tests.workspace.fakes import (
    Points,
    agree_but_for_rounding,
    build_loop,
    metrics,
    trainer_settings,
    training_settings,
    weights,
)
from unified_video_action.workspace import checkpoint as ckpt
from unified_video_action.workspace.loop import FINISHED, OUT_OF_TIME
from unified_video_action.workspace.records import Periodic
from unified_video_action.workspace.settings import OptimizerSettings, ScheduleSettings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run, and what it leaves."""
    folder = tmp_path_factory.mktemp("whole")
    loop = build_loop(folder)
    assert loop.run() == FINISHED
    return folder, weights(loop)


def assert_equal(mine: dict, theirs: dict) -> None:
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different, different


def losses(folder) -> list[float]:
    return [line["train/loss"] for line in metrics(folder)]


def test_training_lowers_the_loss_and_leaves_a_checkpoint(whole):
    lines = metrics(whole[0])
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[-1]["train/loss"] < 0.8 * lines[0]["train/loss"]


def test_a_run_in_three_parts_equals_one_however_often_one_looks(tmp_path):
    """With dropout, and workers in the second part."""
    uninterrupted = build_loop(tmp_path / "whole", dropout=0.3)
    uninterrupted.run()
    for max_steps, options in ((4, {}), (11, {"num_workers": 2, "log_every": 7}), (None, {})):
        parts = build_loop(tmp_path / "parts", trainer=trainer_settings(max_steps=max_steps, **options), dropout=0.3)
        parts.run()
    assert parts.step == 20
    assert_equal(weights(parts), weights(uninterrupted))
    each, seen = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert seen[:4] == each[:4] and seen[-9:] == each[-9:]
    assert seen[5] == pytest.approx(sum(each[5:7]) / 2)


def test_accumulated_micro_batches_equal_the_whole_batch(tmp_path, whole):
    build_loop(tmp_path, trainer=trainer_settings(micro_batch=5)).run()  # 4 at once
    agree_but_for_rounding(whole[0], tmp_path, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_a_number_names_its_samples_and_is_not_saved(tmp_path):
    healthy = build_loop(tmp_path, trainer=trainer_settings(checkpoint_every=2, log_every=3, max_steps=2))
    healthy.run()
    step = next(step for step in range(2, 20) if 17 in [index for index, _ in healthy.batches.whole(step)])
    settings = trainer_settings(checkpoint_every=1, log_every=3, num_workers=1)
    with pytest.raises(FloatingPointError) as caught:
        build_loop(tmp_path, trainer=settings, dataset=Points(broken=(17,))).run()
    assert not multiprocessing.active_children()
    message = str(caught.value)
    assert f"the loss of step {step} is not finite: loss nan" in message
    modes = healthy.batches.policy.mode_mix.modes(step, 12, healthy.batches.seed)
    for (index, seed), mode in zip(healthy.batches.whole(step), modes, strict=True):
        assert re.search(rf"index {index}, seed {seed}, mode {mode.name}: points.zarr, episode {index // 10}", message)
    assert re.search(r"index 17, .*episode 1, step 7  <- not finite: x", message)
    assert message.count("<- not finite") == 1
    last = ckpt.checkpoints(tmp_path / "checkpoints")[-1]
    assert ckpt.step_of(last) == step  # the step before it is the last that was saved
    loop = build_loop(tmp_path)
    loop.restore()
    assert all(torch.isfinite(value).all() for value in weights(loop).values())


def test_weights_ruined_by_a_gradient_are_not_saved(tmp_path):
    training = training_settings(
        optimizer=OptimizerSettings(learning_rate=1e38), schedule=ScheduleSettings(warmup_steps=0)
    )
    loop = build_loop(tmp_path, training, trainer_settings(max_steps=1))
    with torch.no_grad():
        loop.state.model["idle"].weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=r"after step 0 the weights are not finite"):
        loop.run()
    assert not ckpt.checkpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(tmp_path, name, whole):
    def send(step, records):
        os.kill(os.getpid(), getattr(signal, name))
        return {}

    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    loop = build_loop(tmp_path, periodic=[Periodic("trouble", 7, send)])
    assert loop.run() == name
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert loop.step == 7 and (tmp_path / "checkpoints" / "latest").resolve().name == "step_00000007"
    rest = build_loop(tmp_path)
    rest.run()
    assert_equal(weights(rest), whole[1])


def test_a_time_budget_ends_the_run_and_counts_earlier_parts(tmp_path):
    training = training_settings(steps=10**6)
    latest = tmp_path / "checkpoints" / "latest"
    settings = {"checkpoint_every": None, "time_budget_minutes": 5.0}
    build_loop(tmp_path, training, trainer_settings(max_steps=9, **settings)).run()
    used = ckpt.read_state(latest)["elapsed_seconds"]
    settings["time_budget_minutes"] = (used + 0.5) / 60
    loop = build_loop(tmp_path, training, trainer_settings(**settings))
    assert loop.run() == OUT_OF_TIME
    assert loop.seconds == used > 0
    assert ckpt.read_state(latest)["elapsed_seconds"] >= used + 0.5
    assert metrics(tmp_path)[-1]["train/learning_rate"] < 0.5 * 1e-2  # with the time, though hardly a step was done


def test_periodic_tasks_see_averaged_weights_and_score_checkpoints(tmp_path):
    """They are done once more at the end, and not again when there is nothing left to do."""
    seen, scores = {}, {4: 0.2, 8: 0.9, 12: 0.5, 16: 0.1, 20: 0.3}

    def evaluate(step, records):
        assert not loop.state.policy.training and step not in seen
        seen[step] = {name: value.clone() for name, value in loop.state.model.named_parameters()}
        return {"mean_score": scores[step]}

    validated = []
    tasks = [
        Periodic("evaluation", 4, evaluate),
        Periodic("validation", 8, lambda step, records: validated.append(step) or {"loss": 1.0}),
    ]
    trainer = trainer_settings(checkpoint_every=3, keep_top_k=2, monitor="evaluation/mean_score")
    loop = build_loop(tmp_path, trainer=trainer, periodic=tasks)
    loop.run()
    assert loop.state.policy.training
    assert list(seen) == [4, 8, 12, 16, 20] and validated == [8, 16, 20]
    average = loop.state.ema.weights
    assert all(torch.equal(value, average[name]) for name, value in seen[20].items())
    assert [ckpt.step_of(path) for path in ckpt.checkpoints(tmp_path / "checkpoints")] == [8, 12, 20]
    assert (tmp_path / "checkpoints" / "best").resolve().name == "step_00000008"
    name = "evaluation/mean_score"
    assert {line["step"]: line[name] for line in metrics(tmp_path) if name in line} == scores
    build_loop(tmp_path, trainer=trainer, periodic=tasks).run()
    assert validated == [8, 16, 20]


def test_what_was_due_when_a_process_died_is_done_by_the_next(tmp_path):
    begun, validated = [], []

    def validate(step, records):
        begun.append(step)
        if begun.count(step) == 1 and step in (8, 20):
            raise MemoryError
        validated.append(step)
        return {"loss": 1.0}

    def run():
        loop = build_loop(tmp_path, trainer=trainer, periodic=[Periodic("validation", 8, validate)])
        assert loop.run() == FINISHED

    trainer = trainer_settings(monitor="validation/loss")  # so there is a checkpoint before each
    for _ in range(2):
        with pytest.raises(MemoryError):
            run()
    run()
    assert begun == [8, 8, 16, 20, 20] and validated == [8, 16, 20]
    run()
    assert validated == [8, 16, 20] == [line["step"] for line in metrics(tmp_path) if "validation/loss" in line]
