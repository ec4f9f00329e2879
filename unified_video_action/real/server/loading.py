"""From a checkpoint's folder to a core that is ready to plan."""

from __future__ import annotations

import logging
import time
from argparse import Namespace

import numpy as np
import torch

from unified_video_action.env_runner.preparation import choose_device
from unified_video_action.inference.session import PolicySession
from unified_video_action.messages import shown
from unified_video_action.model.samplers import Sampler
from unified_video_action.policy.build import load_policy
from unified_video_action.real.server.core import Core, histories
from unified_video_action.real.server.description import describe, ranges
from unified_video_action.real.server.requests import RequestSpec
from unified_video_action.real.server.umi_desk import require_one_hand

log = logging.getLogger(__name__)


def load_core(args: Namespace) -> Core:
    """The core that `serving`'s options ask for, its inference thread not yet started.

    Raises:
        ValueError, FileNotFoundError: a mistake in the options, or in the checkpoint.
    """
    if args.sampler is not None:
        Sampler.parse(args.sampler)
    if args.max_clients < 1:
        raise ValueError(f"--max-clients {args.max_clients}: expected at least 1")
    description = describe(args.checkpoint)
    if args.allow_umi_pickle:
        require_one_hand(description)
    if args.task is not None and not description.follows_text:
        raise ValueError(f"--task {args.task!r}: {args.checkpoint} follows no instructions")
    spec = RequestSpec(description, ranges(args.checkpoint, description))
    device = choose_device(args.device)
    try:
        policy = load_policy(args.checkpoint, args.weights, device)
        if args.task is not None:
            policy.encode_text([args.task])  # one that cannot be encoded is refused now
        session = PolicySession(policy, args.max_clients, sampler=args.sampler, precision=args.precision)
        _warm_up(session, spec)
    except (KeyError, TypeError, RuntimeError, ImportError) as error:  # RuntimeError: memory of the device, for one
        what = shown(" ".join(str(error).split()), 300)
        raise ValueError(
            f"--checkpoint {args.checkpoint}: no plan on {device}: {type(error).__name__}: {what}"
        ) from error
    return Core(session, spec, args.max_clients, args.smooth, args.task)


def _warm_up(session: PolicySession, spec: RequestSpec) -> None:
    """Plan for nothing, so that no client waits for what only the first plan has to do."""
    policy, frames = session.policy, spec.description.horizon.history
    text = torch.zeros(policy.model.spec.text_dim, device=policy.device) if spec.description.follows_text else None
    session.reset(0, 0, text)
    seen = {
        name: np.zeros((entry.steps, *entry.shape), np.uint8 if entry.kind == "rgb" else np.float32)
        for name, entry in spec.entries.items()
    }
    # A CUDA device captures a graph for every number of new frames that a plan may have to encode.
    for new in range(1, frames + 1) if policy.device.type == "cuda" else (frames,):
        for camera in spec.cameras:
            seen[camera] = seen[camera].copy()
            seen[camera][:new] += np.arange(1, new + 1, dtype=np.uint8).reshape(-1, 1, 1, 1)
        begun = time.monotonic()
        session.recall(histories(seen, frames), 0)
        session.plan([0])
    log.info("a plan takes %.0f ms (%s, %s)", 1e3 * (time.monotonic() - begun), policy.device, session.engine.dtype)
