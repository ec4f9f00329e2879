"""Checkpoints of a few thousand random weights, policies that answer at once, and servers around them."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq
from omegaconf import OmegaConf
from safetensors.torch import save_file

from tests.shrunk import SHRUNK, read
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.inference.continuation import Continuation
from unified_video_action.policy.build import build_policy
from unified_video_action.poses import KINDS, EndEffectorSpec
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.real.serving.core import Core
from unified_video_action.real.serving.requests import RequestSpec
from unified_video_action.real.serving.server import PolicyServer, add_arguments
from unified_video_action.spec import Horizon

INSTRUCTIONS = ("put the cup on the saucer", "fold the towel")
STATES = {
    "robot0_eef_pos": "position",
    "robot0_eef_rot_axis_angle": "rotation_6d",
    "robot0_gripper_width": "gripper",
    "robot0_eef_rot_axis_angle_wrt_start": "rotation_6d_from_start",
}
SIZE, TEXT = 64, 8


def write_checkpoint(folder: Path, end_effector: bool = True, text: bool = True) -> Path:
    """A checkpoint of an end effector with four states that follows instructions, or of PushT."""
    config, fields = read("uva_pusht_mini", *SHRUNK), {}
    if end_effector:
        obs = {"camera0_rgb": {"shape": [3, SIZE, SIZE], "type": "rgb"}}
        obs |= {name: {"shape": [KINDS[kind]], "type": "low_dim"} for name, kind in STATES.items()}
        config["task"]["shape_meta"] = {"obs": obs, "action": {"shape": [10]}, "text_dim": TEXT if text else 0}
        config["task"]["end_effector"] = {"states": STATES, "relative_states": True, "relative_actions": True}
        config["task"]["step_seconds"] = 0.05
        config["policy"]["relative_to"] = None
        config["vae"]["image_size"] = SIZE
        fields = Normalizer.identity({k: KINDS[v] for k, v in STATES.items()}).fields()
        bounds = {"action": np.array([[-1.0] * 10, [1.0] * 10])}
    else:
        bounds = dict.fromkeys(("action", "agent_pos"), np.array([[0.0, 0.0], [512.0, 512.0]]))
    if end_effector and text:
        clip = {"_target_": "unified_video_action.text.clip.ClipText", "weights": "missing.safetensors", "tokens": 30}
        config["text"] = clip
    normalizer = Normalizer(Normalizer.limits(bounds).fields() | fields)
    torch.manual_seed(0)
    policy = build_policy(config, normalizer)
    for parameter in policy.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    folder.mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    (folder / "normalizer.json").write_text(normalizer.to_json())
    save_file(policy.model.state_dict(), folder / "ema.safetensors")
    if end_effector and text:
        features = {name: torch.randn(TEXT).tolist() for name in INSTRUCTIONS}
        (folder / "instructions.json").write_text(json.dumps({"tokens": 30, "features": features}))
    return folder


def options(*given: str) -> Namespace:
    """Options of `eval_real.py serve`."""
    parser = ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(("--checkpoint", ".", *given))


def describe(size: int = SIZE, follows_text: bool = True) -> PolicyDescription:
    """As the end effector's checkpoint."""
    entries = {"camera0_rgb": ObservationEntry("rgb", (size, size, 3), 4)}
    entries |= {name: ObservationEntry("low_dim", (KINDS[kind],), 4) for name, kind in STATES.items()}
    known = INSTRUCTIONS if follows_text else ()
    end_effector = EndEffectorSpec(STATES)
    return PolicyDescription(
        "end_effector", entries, Horizon(), 10, 8, follows_text, known, 0.05, end_effector, continues=True
    )


def observe(description: PolicyDescription, seed: int = 0) -> dict[str, np.ndarray]:
    """A random history that the description allows."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(256, size=(entry.steps, *entry.shape), dtype=np.uint8)
        if entry.kind == "rgb"
        else rng.uniform(-0.5, 0.5, (entry.steps, *entry.shape)).astype(np.float32)
        for name, entry in description.observations.items()
    }


class InstantSession:
    """Plans at once: every action is the newest position; or does as `failure` says."""

    def __init__(self, description: PolicyDescription) -> None:
        self.description = description
        self.failure: BaseException | str | None = None
        self.before_plan: Callable[[], object] = lambda: None
        self.resets: list[tuple[int, int, str | None]] = []
        self.recalled: dict[int, list[Mapping[str, np.ndarray]]] = {}
        self.going_on: list[Mapping[int, Continuation] | None] = []

    def reset(self, slot: int = 0, seed: int = 0, text: str | None = None) -> None:
        if text == "unheard of":
            raise ValueError(f"no feature of {text!r}")
        self.resets.append((slot, seed, text))

    def recall(self, history: list[dict[str, np.ndarray]], slot: int = 0) -> None:
        self.recalled[slot] = history

    def plan(self, slots: list[int], going_on: Mapping[int, Continuation] | None = None) -> np.ndarray:
        self.before_plan()
        self.going_on.append(going_on)
        if isinstance(self.failure, BaseException):
            raise self.failure
        actions = np.zeros((1, self.description.horizon.actions, self.description.action_dim), np.float32)
        actions[..., :3] = self.recalled[slots[0]][-1]["robot0_eef_pos"]
        return np.full_like(actions, np.nan) if self.failure == "nan" else actions

    def shown(self, slot: int = 0) -> list[list[float]]:
        """The positions of the newest history."""
        return [step["robot0_eef_pos"].tolist() for step in self.recalled[slot]]


@contextmanager
def instant_core(
    description: PolicyDescription | None = None, **settings: Any
) -> Iterator[tuple[Core, InstantSession]]:
    description = description or describe()
    session = InstantSession(description)
    with Core(session, RequestSpec(description), **settings) as core:
        yield core, session


@contextmanager
def serve(core: Core, *given: str) -> Iterator[dict[str, int]]:
    """Ports of a server with these options."""
    with PolicyServer(core, options("--port", "0", "--umi-port", "0", *given)) as server:
        yield server.ports


def websocket_url(ports: dict[str, int]) -> str:
    return f"ws://127.0.0.1:{ports['websocket']}"


@contextmanager
def umi_client(ports: dict[str, int]) -> Iterator[zmq.Socket]:
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.linger, client.rcvtimeo = 0, 120_000  # ms
        client.connect(f"tcp://127.0.0.1:{ports['umi']}")
        yield client
