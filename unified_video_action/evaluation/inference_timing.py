"""How long a policy takes to act: by part (rows of the paper's Table VII and those of frame generation), against the
plain pipeline, and how steadily.

Times do not depend on what the weights are or what the frames show, so observations are noise.
"""

from __future__ import annotations

import gc
import os
import re
import resource
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from unified_video_action.evaluation.timing import Bench, Rows, Times, part_of
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.base import BasePolicy

COMPARED = {"policy_100": "ancestral100", "policy_16": "ancestral16"}
LAUNCH = re.compile(r"cu(da)?(LaunchKernel|GraphLaunch)")  # the profiler's names of calls that start kernels
SETTLING = 0.1  # share of a series of calls after which memory must not grow any more

Observed = dict[str, np.ndarray]


@contextmanager
def stopwatch(bench: Bench, policy: BasePolicy) -> Iterator[Times]:
    """Within the context the parts of an accelerated policy add their seconds to the mapping; others have none."""
    times: Times = {}
    if not hasattr(policy.model, "replay"):
        yield times
        return
    replay = policy.model.replay

    def timed(name: Any, function: Callable, *tensors: Tensor | None) -> Any:
        results: list = []
        seconds = bench.time(lambda: results.append(replay(name, function, *tensors)))
        times[part_of(name)] = times.get(part_of(name), 0.0) + seconds
        return results[0]

    policy.model.replay = timed
    try:
        yield times
    finally:
        policy.model.replay = replay


def random_observations(policy: BasePolicy) -> Iterator[Observed]:
    """Endless frames, and states within the normaliser's limits, all different."""
    rng = np.random.default_rng(0)
    states = {name: policy.normalizer.scale(name).cpu() for name in policy.task.states}
    while True:
        frames = {each.name: rng.integers(256, size=(*each.size, 3), dtype=np.uint8) for each in policy.task.cameras}
        normalised = {name: torch.from_numpy(rng.uniform(-1, 1, len(scale))).float() for name, scale in states.items()}
        yield frames | {name: policy.normalizer.unnormalize(name, x).cpu().numpy() for name, x in normalised.items()}


def new_frames(policy: BasePolicy) -> int:
    """Frames of the history that a plan in the steady state has not seen before."""
    return sum(-policy.action_steps < offset for offset in policy.task.horizon.history_offsets)


def time_latency(policy: BasePolicy, bench: Bench, batch: int = 1, sampler: str | None = None) -> dict[str, Rows]:
    """Time planning in `batch` environments.

    Returns:
        rows of a plan whose history is all new, of one that remembers frames of the plan before it, and of a plan with
        imagined frames where the policy has them. Of other policies than UVA there is the total alone.
    """
    policy.eval()
    session = PolicySession(policy, slots=batch, sampler=sampler, precision=bench.precision)
    observation, history = next(random_observations(policy)), policy.task.horizon.history_offsets

    def observe(steps: int) -> None:
        for slot in range(batch):
            for _ in range(steps):
                session.observe(observation, slot)

    def measure(predict: Callable[[], Any], remember: bool = False) -> Times:
        for slot in range(batch):
            session.reset(slot, text=torch.zeros(policy.task.text_dim))
        observe(1 - history[0])
        if remember:
            session.plan()
            observe(policy.action_steps)
        with stopwatch(bench, session.policy) as times:
            total = bench.time(predict)
        return {**times, "total": total}

    plans = {
        f"policy, {len(history)} new frames": lambda: measure(session.plan),
        f"policy, {new_frames(policy)} new frames": lambda: measure(session.plan, remember=True),
    }
    if policy.imagines:
        plans["policy and video"] = lambda: measure(session.imagine)
    return {name: bench.summarise(plan) for name, plan in plans.items()}


# -- the session against the plain pipeline ----------------------------------------------------------------------------


def wake(policy: BasePolicy) -> None:
    """Give weights that an untrained model starts at zero random values, so that its output depends on its input."""
    for parameter in policy.model.parameters():
        if not parameter.any():
            std = parameter.shape[-1] ** -0.5  # of weights: outputs as large as inputs
            torch.nn.init.normal_(parameter, std=std, generator=torch.Generator(parameter.device).manual_seed(0))


class Pair:
    """A session and the plain pipeline of one policy that observe the same environment.

    The plain pipeline encodes all frames of its history in every plan and runs the model as it is.
    """

    def __init__(self, policy: BasePolicy, bench: Bench, sampler: str) -> None:
        policy.eval()
        self.policy, self.bench, self.sampler = policy, bench, sampler
        self.text, self.generator = torch.zeros(policy.task.text_dim), torch.Generator().manual_seed(0)
        self.session = PolicySession(policy, sampler=sampler, precision=bench.precision)
        self.session.reset(seed=0, text=self.text)
        self.source, self.seen = random_observations(policy), []
        self.oldest = policy.task.horizon.history_offsets[0] - 1
        self.observe(-self.oldest)

    def observe(self, steps: int) -> None:
        for each in islice(self.source, steps):
            self.seen.append(each)
            self.session.observe(each)
        del self.seen[: self.oldest]

    def fast(self) -> np.ndarray:
        return self.session.plan()

    def slow(self) -> np.ndarray:
        """(1, A, D)"""
        history, task = [self.seen[offset - 1] for offset in self.policy.task.horizon.history_offsets], self.policy.task
        obs = {name: torch.from_numpy(np.stack([each[name] for each in history]))[None] for name in history[0]}
        obs |= {name: obs[name].movedim(-1, 2) for name in task.camera_names}  # (1, H, 3, h, w)
        obs |= {"text": self.text[None].to(self.policy.device)} if task.text_dim else {}
        with self.bench.autocast():
            return self.policy.predict_action(obs, [self.generator], self.sampler)["action_pred"].cpu().numpy()

    def step(self) -> tuple[float, float, float]:
        """Plan with both and go on: milliseconds of either, and how far apart their plans are, normalised."""
        plans: list[np.ndarray] = []
        fast = self.bench.time(lambda: plans.append(self.fast()))
        slow = self.bench.time(lambda: plans.append(self.slow()))
        self.observe(self.policy.action_steps)
        scale = self.policy.normalizer.scale("action").cpu().numpy()
        return 1000 * fast, 1000 * slow, float(np.abs((plans[0] - plans[1]) * scale).max())


def compare_naive(policy: BasePolicy, bench: Bench) -> dict[str, dict[str, float]]:
    """Time plans for one environment in the steady state, by the session and by the plain pipeline, in turns.

    In the steady state `action_steps` observations are new since the last plan; the session encodes the frames of its
    history that are among them and remembers the others.

    Returns:
        for 100 and for 16 ancestral steps `fast_ms` and `naive_ms` (medians), `ratio`, `max_abs_diff` of the actions,
        normalised, and how many `new_frames` there were among the `history_frames`.
    """
    found = {}
    for name, sampler in COMPARED.items():
        pair = Pair(policy, bench, sampler)
        # The first plan remembers nothing.
        fast, slow, apart = zip(*[pair.step() for _ in range(1 + bench.warmup + bench.repeats)])
        fast_ms, naive_ms = (statistics.median(times[-bench.repeats :]) for times in (fast, slow))
        found[name] = {
            "fast_ms": fast_ms,
            "naive_ms": naive_ms,
            "ratio": fast_ms / naive_ms,
            "max_abs_diff": max(apart),
            "new_frames": new_frames(policy),
            "history_frames": policy.task.horizon.history,
        }
    return found


def count_launches(policy: BasePolicy, bench: Bench) -> dict[str, dict[str, dict[str, int]]]:
    """What a plan in the steady state asks of a CUDA device, for 100 and for 16 ancestral steps.

    Returns:
        for the session (`fast`) and the plain pipeline (`naive`): `kernels` that the device runs, and `launches`, the
        host's calls that start them; a graph with all its kernels is one.

    Raises:
        ValueError: the device is a CPU.
    """
    if bench.device.type != "cuda":
        raise ValueError("--only launches counts those of a CUDA device; take --device cuda")
    counts = {}
    for name, sampler in COMPARED.items():
        pair = Pair(policy, bench, sampler)
        for _ in range(1 + bench.warmup):
            pair.step()
        counts[name] = {"fast": _launches(pair.fast), "naive": _launches(pair.slow)}
    return counts


def _launches(plan: Callable[[], Any]) -> dict[str, int]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        plan()
        torch.cuda.synchronize()
    events = seen.events()
    on_device = [event.name for event in events if event.device_type == DeviceType.CUDA]
    return {
        "kernels": sum(not name.startswith(("Memcpy", "Memset")) for name in on_device),
        "launches": sum(bool(LAUNCH.match(event.name)) for event in events),
    }


# -- over many plans ---------------------------------------------------------------------------------------------------


def time_steadiness(policy: BasePolicy, bench: Bench, calls: int, sampler: str | None = None) -> dict[str, float]:
    """Plan `calls` times for one environment in the steady state.

    Returns:
        `p50_ms`, `p99_ms` and their `ratio`; growth of the process's resident memory and of the device's allocations
        after the first tenth of the calls, in MiB.
    """
    policy.eval()
    session = PolicySession(policy, sampler=sampler, precision=bench.precision)
    session.reset(text=torch.zeros(policy.task.text_dim))
    kept = cycle(list(islice(random_observations(policy), 64)))  # making them again would take longer
    seconds, memory = [], []
    for call in range(-bench.warmup, calls):
        for each in islice(kept, policy.action_steps):
            session.observe(each)
        if call == int(SETTLING * calls):
            memory.append(used_memory(bench.device))
        seconds.append(bench.time(session.plan))
    memory.append(used_memory(bench.device))
    p50, p99 = map(float, np.percentile(1000 * np.array(seconds[bench.warmup :]), [50, 99]))
    resident, on_device = (later - before for before, later in zip(*memory, strict=True))
    return {
        "calls": calls,
        "p50_ms": p50,
        "p99_ms": p99,
        "ratio": p99 / p50,
        "resident_growth_mib": resident,
        "device_growth_mib": on_device,
    }


def used_memory(device: torch.device) -> tuple[float, float]:
    """MiB of the process that are resident (on Linux), and that torch holds on the device (0 on a CPU)."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    on_device = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    return pages * os.sysconf("SC_PAGESIZE") / 2**20, on_device / 2**20


def peak_memory(device: torch.device) -> float:
    """MiB: the most that torch held on a CUDA device, or that was resident of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
