"""From a checkpoint's folder to its description, and to a core that is ready to plan."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unified_video_action.compat.checkpoint_files import read_json
from unified_video_action.env_runner.preparation import choose_device
from unified_video_action.inference.session import PolicySession
from unified_video_action.instantiate import build_dataclass
from unified_video_action.messages import shown
from unified_video_action.model.samplers import Sampler
from unified_video_action.policy.base import INSTRUCTIONS
from unified_video_action.policy.build import load_policy
from unified_video_action.poses import EndEffectorSpec
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.real.serving.core import Core
from unified_video_action.real.serving.histories import histories
from unified_video_action.real.serving.requests import RequestSpec
from unified_video_action.real.serving.umi_arx import require_one_end_effector
from unified_video_action.rotations import POSE_ACTION
from unified_video_action.spec import TaskSpec
from unified_video_action.untrusted import CONFIG, read_checkpoint_config

log = logging.getLogger(__name__)

WHOLE = 16 * 1024 * 1024  # bytes up to which a checkpoint's file is hashed whole


def load_core(args: Namespace) -> Core:
    """The core that the options of `eval_real.py serve` ask for, its inference thread not yet started.

    Raises:
        ValueError, FileNotFoundError: a mistake in the options, or in the checkpoint.
    """
    if args.sampler is not None:
        Sampler.parse(args.sampler)
    description = describe(args.checkpoint)
    if args.allow_umi_pickle:
        require_one_end_effector(description)
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


def describe(folder: Path) -> PolicyDescription:
    """The description of a checkpoint.

    `task.end_effector` of its configuration says that it moves an end effector, and how (see EndEffectorSpec);
    `task.step_seconds` is the time between two steps of its data.

    Raises:
        FileNotFoundError: no such folder, or no configuration in it.
        ValueError: a configuration that does not fit together, named by its key.
    """
    config = read_checkpoint_config(folder)
    for key in ("task.shape_meta.obs", "task.shape_meta.action.shape", "task.horizon", "policy.action_steps"):
        _section(config, folder / CONFIG, *key.split("."))
    path = folder / INSTRUCTIONS
    try:
        spec, seconds, end_effector = _of_task(config["task"])
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    entries = {camera.name: ObservationEntry("rgb", (*camera.size, 3), spec.horizon.history) for camera in spec.cameras}
    entries |= {name: ObservationEntry("low_dim", (width,), spec.state_steps) for name, width in spec.states.items()}
    return PolicyDescription(
        name=str(config.get("name") or folder.resolve().name),
        observations=entries,
        horizon=spec.horizon,
        action_dim=spec.action_dim,
        action_steps=config["policy"]["action_steps"],
        follows_text=spec.text_dim > 0,
        instructions=tuple(_section(read_json(path), path, "features")) if path.is_file() else (),
        step_seconds=seconds,
        end_effector=end_effector,
        continues=True,
        fingerprint=fingerprint(folder),
    )


def fingerprint(folder: Path) -> str:
    """Another one for other files. Of large files the beginning is hashed, and the time of writing."""
    files = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        size = path.stat().st_size
        with path.open("rb") as file:
            beginning = hashlib.sha256(file.read(WHOLE)).hexdigest()
        files.append([path.name, size, beginning, path.stat().st_mtime_ns if size > WHOLE else 0])
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:24]


def _of_task(task: Mapping[str, Any]) -> tuple[TaskSpec, float | None, EndEffectorSpec | None]:
    """Its spec, its seconds between two steps and what it moves."""
    spec, seconds, node = TaskSpec.parse(task), task.get("step_seconds"), task.get("end_effector")
    if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds < 60):
        raise ValueError(f"task.step_seconds={seconds!r}: expected seconds between two steps, such as 0.05")
    end_effector = None if node is None else build_dataclass(EndEffectorSpec, node, "task.end_effector")
    if end_effector is not None:
        if strangers := end_effector.states.keys() - spec.states.keys():
            raise ValueError(f"task.end_effector.states: {', '.join(sorted(strangers))} is not in task.shape_meta.obs")
        if spec.action_dim != POSE_ACTION:
            raise ValueError(
                f"task.end_effector: actions of {spec.action_dim} numbers are not poses, which have {POSE_ACTION}"
            )
    return spec, None if seconds is None else float(seconds), end_effector


def ranges(folder: Path, description: PolicyDescription) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Lowest and highest value (d,) of `action` and of each state in the training data, where the normaliser knows.

    Raises:
        FileNotFoundError: no normaliser. ValueError: it is damaged, or one of another task.
    """
    path = folder / "normalizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {folder}: {path.name} is missing; copy the whole folder")
    states = [name for name, entry in description.observations.items() if entry.kind == "low_dim"]
    fields = {name: _section(read_json(path), path, name) for name in ("action", *states)}
    origin = read_checkpoint_config(folder)["policy"].get("relative_to")
    fields["action"] = fields["action"] if origin is None else fields[origin]  # where a prefix, which is absolute, lies
    known = {name: field for name, field in fields.items() if {"min", "max"} <= field.keys()}
    return {name: (np.array(field["min"]), np.array(field["max"])) for name, field in known.items()}


def _section(data: Any, file: Path, *names: str) -> Any:
    """What lies below these names in a file's data. Raises ValueError where there is nothing."""
    for depth, name in enumerate(names, 1):
        if not isinstance(data, Mapping) or name not in data:
            raise ValueError(f"{file}: {'.'.join(names[:depth])} is missing; is it that of another project or task?")
        data = data[name]
    return data


def _warm_up(session: PolicySession, spec: RequestSpec) -> None:
    """Plan for nothing, so that no client waits for what only the first plan has to do."""
    policy, frames = session.policy, spec.description.horizon.history
    text = torch.zeros(policy.task.text_dim, device=policy.device) if spec.description.follows_text else None
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
    log.info("a plan takes %.0f ms (%s)", 1e3 * (time.monotonic() - begun), policy.device)
