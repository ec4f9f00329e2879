"""The names and files of UMI's client on ARX arms: what it sends, and the configuration that it reads beforehand.

It sends, once per plan, a pickled dict of arrays without a batch axis, time first: `camera0_rgb` (T, 3, H, W) float32
in [0, 1], `robot0_eef_pos` (T, 3), `robot0_eef_rot_axis_angle` (T, 6), which is a 6-D rotation in spite of its name,
`robot0_gripper_width` (T, 1), `robot0_eef_rot_axis_angle_wrt_start` (T, 6), and perhaps `task_name`. It expects a
pickled array (A, 10) of poses in the same terms, or a text, which it prints before it ends the episode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from unified_video_action.poses import KINDS

CAMERA = "camera0_rgb"
STATES = {  # what a policy may read of an end effector -> its name here, and as which numbers the client measures it
    "position": ("robot0_eef_pos", 3),
    "rotation_6d": ("robot0_eef_rot_axis_angle", 3),
    "gripper": ("robot0_gripper_width", 1),
    "rotation_6d_from_start": ("robot0_eef_rot_axis_angle_wrt_start", 3),
}
ALWAYS = ("position", "rotation_6d", "gripper")  # the client makes poses only where all three are asked for
TASK = "task_name"
TIMESTAMP = "timestamp"  # (T,) seconds, of the frames; umi-arx's own client does not send it
WORDS = ("cup", "towel", "mouse")  # of the published tasks


def observations(message: Mapping[str, Any], camera: str, states: Mapping[str, str]) -> dict[str, Any]:
    """What the client sends, under a policy's own names.

    Args:
        camera: the policy's. states: name of a policy's state -> what it is of an end effector.

    Raises:
        ValueError: something is missing.
    """
    names = {camera: CAMERA} | {name: STATES[kind][0] for name, kind in states.items()}
    missing = [name for name in names.values() if name not in message]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing; was the client started with the configuration made for it?")
    return {own: message[name] for own, name in names.items()}


def instruction(message: Mapping[str, Any], known: Sequence[str]) -> str | None:
    """The instruction that a message's `task_name` stands for: itself, or the one with the same word; None without.

    Raises:
        ValueError: it stands for none, or for several.
    """
    given = message.get(TASK)
    if given is None or given in known:
        return given
    if not isinstance(given, str) or len(given) > 1000:
        raise ValueError(f"{TASK}: a {type(given).__name__}, expected a short text")
    words = [word for word in WORDS if word in given.lower()]
    fitting = [text for text in known if any(word in text.lower() for word in words)]
    if len(fitting) != 1:
        raise ValueError(
            f"{TASK}={given[:60]!r} fits {len(fitting)} of the instructions: {'; '.join(known[:6]) or 'none known'}"
        )
    return fitting[0]


def client_yaml(
    name: str,
    image: tuple[int, int],
    states: Mapping[str, str],
    relative: tuple[bool, bool],
    steps: int,
    actions: int,
    step_seconds: float | None = None,
) -> str:
    """The configuration that the client reads in place of the checkpoint's own, as `CHECKPOINT.yaml`.

    Args:
        name: of the policy, which the client prints. image: height and width. states: as in `observations`.
        relative: whether states and whether actions are seen from the newest pose.
        steps: of a history, one per control step. actions: of a plan.
        step_seconds: between two steps, for the comment: the client itself gets its rate by an option.
    """
    each = {"horizon": steps, "latency_steps": 0, "down_sample_steps": 1}
    obs: dict[str, Any] = {CAMERA: {"shape": [3, *image], "type": "rgb", "ignore_by_policy": False, **each}}
    for kind in dict.fromkeys((*ALWAYS, *states.values())):
        own, raw = STATES[kind]
        rotation = {"raw_shape": [raw], "rotation_rep": "rotation_6d"} if KINDS[kind] == 6 else {}
        obs[own] = {"shape": [KINDS[kind]], "type": "low_dim", **rotation, **each}
    action = {"shape": [10], **each, "horizon": actions, "rotation_rep": "rotation_6d"}
    meta = {"obs": obs, "action": action}
    poses = dict(zip(("obs_pose_repr", "action_pose_repr"), ("relative" if each else "abs" for each in relative)))
    task = {"name": name, "shape_meta": meta, "pose_repr": poses, "dataset": {"dataset_path": name, "shape_meta": meta}}
    config = {"task": task, "policy": {"obs_encoder": {"model_name": name}}}
    rate = "" if step_seconds is None else f" Run the client with {frequency(step_seconds)}."
    head = f"# For the -i option of umi-arx's client: put it where the client looks for CHECKPOINT.yaml.{rate}\n"
    return head + yaml.dump(json.loads(json.dumps(config)), sort_keys=False)  # through JSON: no aliases


def frequency(step_seconds: float) -> str:
    """The client's option for control steps of that length."""
    return f"-f {1 / step_seconds:.3g}"
