"""What the fast path of acting brings, measured against the plain one, and how steady it is."""

from __future__ import annotations

import copy
import gc
import os
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from unified_video_action.evaluation.timing import Bench
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.unified_video_action_policy import UnifiedVideoActionPolicy
from unified_video_action.vae.base import FrameCodec, Moments
from unified_video_action.vae.kl import AutoencoderKL

COMPARED = {"policy_100": "ancestral100", "policy_16": "ancestral16"}
LAUNCH = re.compile(r"cu(da)?(LaunchKernel|GraphLaunch)")  # the profiler's names of calls that start kernels
SETTLING = 0.1  # share of a series of calls after which memory must not grow any more

Observed = dict[str, np.ndarray]


def wake(policy: UnifiedVideoActionPolicy) -> None:
    """Give weights that an untrained model starts at zero random values, so that its output depends on its input."""
    for parameter in policy.model.parameters():
        if not parameter.any():
            std = parameter.shape[-1] ** -0.5  # of weights: outputs as large as inputs
            torch.nn.init.normal_(parameter, std=std, generator=torch.Generator(parameter.device).manual_seed(0))


def random_observations(policy: UnifiedVideoActionPolicy, image: tuple[int, int]) -> Iterator[Observed]:
    """Endless frames of (height, width) `image` and states within the normaliser's limits, all different."""
    rng = np.random.default_rng(0)
    states = {name: policy.normalizer.scale(name).cpu() for name in policy.observations.low_dim}
    while True:
        frames = {name: rng.integers(256, size=(*image, 3), dtype=np.uint8) for name in policy.observations.cameras}
        normalised = {name: torch.from_numpy(rng.uniform(-1, 1, len(scale))).float() for name, scale in states.items()}
        yield frames | {name: policy.normalizer.unnormalize(name, x).numpy() for name, x in normalised.items()}


class NaivePlanner:
    """The same policy without the session's measures: every plan encodes all frames of its history with the codec's
    network as it is, runs the unfolded input stage, and denoises step by step."""

    def __init__(self, policy: UnifiedVideoActionPolicy, bench: Bench, sampler: str, text: Tensor | None) -> None:
        parts = policy.normalizer, policy.observations, policy.config
        self.policy = UnifiedVideoActionPolicy(policy.model, naive_codec(policy.codec), *parts).eval()
        self.bench, self.sampler, self.text = bench, sampler, text
        self.generator = torch.Generator().manual_seed(0)

    def plan(self, seen: list[Observed]) -> np.ndarray:
        """The newest observation last -> (1, A, D)."""
        history = [seen[offset - 1] for offset in self.policy.horizon.history_offsets]
        obs: dict[str, Any] = {name: torch.from_numpy(np.stack([s[name] for s in history]))[None] for name in seen[-1]}
        for name in self.policy.observations.cameras:
            obs[name] = obs[name].permute(0, 1, 4, 2, 3)  # (1, H, 3, h, w)
        if self.text is not None:
            obs["text"] = self.text[None]
        with self.bench.autocast():
            return self.policy.predict_action(obs, [self.generator], self.sampler)["action_pred"].cpu().numpy()


def naive_codec(codec: FrameCodec) -> FrameCodec:
    """A codec without measures of its own: kl-f16 through diffusers' forward pass, in the default memory layout."""
    if not isinstance(codec, AutoencoderKL):
        return codec
    codec = copy.deepcopy(codec)
    network = codec.network.to(memory_format=torch.contiguous_format)

    def encode_images(images: Tensor) -> Moments:
        return Moments(*network.encode(images).latent_dist.parameters.chunk(2, dim=1))

    codec.encode_images = encode_images
    return codec


def compare_naive(
    policy: UnifiedVideoActionPolicy, bench: Bench, image: tuple[int, int]
) -> dict[str, dict[str, float]]:
    """Time plans for one environment in the steady state, by the session and without its measures, in turns.

    In the steady state `action_steps` observations are new since the last plan; the session encodes the frames of its
    history that are among them and remembers the others.

    Returns:
        for 100 and for 16 ancestral steps `fast_ms` and `naive_ms` (medians), `ratio`, `max_abs_diff` of the actions,
        normalised, and how many `new_frames` there were among the `history_frames`.
    """
    policy.eval()
    return {name: _compare(policy, bench, image, sampler) for name, sampler in COMPARED.items()}


def _compare(policy: UnifiedVideoActionPolicy, bench: Bench, image: tuple[int, int], sampler: str) -> dict[str, float]:
    pair, horizon = Pair(policy, bench, image, sampler), policy.horizon
    scale = policy.normalizer.scale("action").cpu().numpy()

    def plan_both() -> tuple[float, float, float]:
        """Milliseconds of either, and how far apart their plans are."""
        plans: list[np.ndarray] = []
        fast = bench.time(lambda: plans.append(pair.fast()))
        slow = bench.time(lambda: plans.append(pair.slow()))
        pair.observe(policy.action_steps)
        return 1000 * fast, 1000 * slow, float(np.abs((plans[0] - plans[1]) * scale).max())

    rows = [plan_both() for _ in range(1 + bench.warmup + bench.repeats)]  # the first plan remembers nothing
    fast, slow, apart = zip(*rows)
    fast_ms, naive_ms = statistics.median(fast[-bench.repeats :]), statistics.median(slow[-bench.repeats :])
    return {
        "fast_ms": fast_ms,
        "naive_ms": naive_ms,
        "ratio": fast_ms / naive_ms,
        "max_abs_diff": max(apart),
        "new_frames": sum(-policy.action_steps < offset for offset in horizon.history_offsets),
        "history_frames": horizon.history,
    }


class Pair:
    """A session and a naive planner of one policy that observe the same environment."""

    def __init__(self, policy: UnifiedVideoActionPolicy, bench: Bench, image: tuple[int, int], sampler: str) -> None:
        text = no_instruction(policy)
        self.session = PolicySession(policy, sampler=sampler, precision=bench.precision)
        self.naive = NaivePlanner(policy, bench, sampler, text)
        self.session.reset(seed=0, text=text)
        self.source, self.seen = random_observations(policy, image), []
        self.oldest = policy.horizon.history_offsets[0] - 1
        self.observe(-self.oldest)

    def observe(self, steps: int) -> None:
        for _ in range(steps):
            self.seen.append(next(self.source))
            self.session.observe(self.seen[-1])
        del self.seen[: self.oldest]

    def fast(self) -> np.ndarray:
        return self.session.plan()

    def slow(self) -> np.ndarray:
        return self.naive.plan(self.seen)


def count_launches(
    policy: UnifiedVideoActionPolicy, bench: Bench, image: tuple[int, int]
) -> dict[str, dict[str, dict[str, int]]]:
    """What a plan in the steady state asks of a CUDA device, for 100 and for 16 ancestral steps.

    Returns:
        for the session (`fast`) and without its measures (`naive`): `kernels` that the device runs, and `launches`, the
        host's calls that start them; a graph with all its kernels is one.

    Raises:
        ValueError: the device is a CPU.
    """
    if bench.device.type != "cuda":
        raise ValueError("--only launches counts those of a CUDA device; take --device cuda")
    policy.eval()
    counts = {}
    for name, sampler in COMPARED.items():
        pair = Pair(policy, bench, image, sampler)
        for _ in range(1 + bench.warmup):
            pair.fast(), pair.slow()
            pair.observe(policy.action_steps)
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


def no_instruction(policy: UnifiedVideoActionPolicy) -> Tensor | None:
    """A feature (text_dim,) of nothing, for a policy that wants one."""
    text_dim = policy.model.spec.text_dim
    return torch.zeros(text_dim, device=policy.device) if text_dim else None


def time_steadiness(
    policy: UnifiedVideoActionPolicy, bench: Bench, image: tuple[int, int], calls: int, sampler: str | None = None
) -> dict[str, float]:
    """Plan `calls` times for one environment in the steady state.

    Returns:
        `p50_ms`, `p99_ms` and their `ratio`; growth of the process's resident memory and of the device's allocations
        after the first tenth of the calls, in MiB.
    """
    policy.eval()
    session = PolicySession(policy, sampler=sampler, precision=bench.precision)
    session.reset(text=no_instruction(policy))
    source = random_observations(policy, image)
    kept = [next(source) for _ in range(64)]  # making them anew would take longer than planning
    seconds, memory = np.empty(calls), []
    step = 0
    for call in range(-bench.warmup, calls):
        for _ in range(policy.action_steps):
            session.observe(kept[step % len(kept)])
            step += 1
        if call == int(SETTLING * calls):
            memory.append(used_memory(bench.device))
        took = bench.time(session.plan)
        if call >= 0:
            seconds[call] = took
    memory.append(used_memory(bench.device))
    p50, p99 = np.percentile(1000 * seconds, [50, 99])
    (resident, allocated), (resident_later, allocated_later) = memory
    return {
        "calls": calls,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "ratio": float(p99 / p50),
        "resident_growth_mib": resident_later - resident,
        "device_growth_mib": allocated_later - allocated,
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
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
