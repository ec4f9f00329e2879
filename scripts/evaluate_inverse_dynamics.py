"""How well a checkpoint tells a hand-held camera's motion from future frames, in cm and degrees (paper, Table VI).

    python scripts/evaluate_inverse_dynamics.py --checkpoint RUN/checkpoints/latest
    python scripts/evaluate_inverse_dynamics.py --checkpoint ... --data unseen.zarr.zip --json errors.json
    python scripts/evaluate_inverse_dynamics.py --checkpoint ... --data mocap.zarr.zip --other slam=slam.zarr.zip

Windows are those of the episodes that the run held out, or with --data of all episodes in other archives of the same
kind, whose poses count as known. --other names archives of the same episodes and frames with poses by another method,
such as SLAM, which are measured in the same way. The row "still" says that nothing moves: the size of the task. Past
frames are shown to a model that was trained with them (model.masking.inverse_history), as the policy does.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_video_action.workspace.commands import at_least, mistakes, script_parser, write_figures

if TYPE_CHECKING:
    from unified_video_action.dataset.window_dataset import WindowDataset

log = logging.getLogger("evaluate_inverse_dynamics")


def open_dataset(config: dict[str, Any], paths: list[Path] | None) -> WindowDataset:
    """The run's held-out episodes, or all of other archives, as they are: not augmented, at fixed times."""
    from unified_video_action.dataset.build import build_dataset
    from unified_video_action.evaluation.windows import with_stores

    if paths is None:
        return build_dataset(config).validation()
    config = with_stores(config, paths)
    config["task"]["dataset"]["max_train_episodes"] = None
    return build_dataset(config).everything()


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """name of the method -> its errors."""
    import torch

    from unified_video_action.evaluation import inverse_dynamics
    from unified_video_action.instantiate import build_dataclass
    from unified_video_action.policy.build import load_policy
    from unified_video_action.poses import EndEffectorSpec
    from unified_video_action.untrusted import read_checkpoint_config

    others = dict(named.split("=", 1) for named in args.other if "=" in named)
    if len(others) != len(args.other):
        raise ValueError(f"--other {' '.join(args.other)}: expected NAME=ARCHIVE, each name once")
    if others and args.data is None:
        raise ValueError("--other compares archives with --data: name the one whose poses are known")
    policy = load_policy(args.checkpoint, args.weights, torch.device(args.device))
    config = read_checkpoint_config(args.checkpoint)
    if not config["task"].get("end_effector"):
        raise ValueError(
            f"{args.checkpoint}: its task has no end effector (task.end_effector): its actions are not camera poses"
        )
    end_effector = build_dataclass(EndEffectorSpec, config["task"]["end_effector"], "task.end_effector")
    dataset = open_dataset(config, args.data)
    if dataset.instructions:
        dataset.use_text(policy.encode_text(dataset.instructions))
    indices = inverse_dynamics.windows_of(dataset, args.windows)
    log.info("%d windows of %d", len(indices), len(dataset))
    predicted, true, recorded = inverse_dynamics.predict(policy, dataset, indices, args.sampler)
    answers = {"model": predicted, "still": inverse_dynamics.standing_still(true, end_effector)}
    for name, path in others.items():
        other = open_dataset(config, [Path(path)])
        if len(other) != len(dataset):
            raise ValueError(f"--other {path}: {len(other)} windows, --data has {len(dataset)}: not the same episodes")
        answers[name] = inverse_dynamics.recorded_actions(other, indices)
    episodes = dataset.episodes()[indices]

    def summaries(chunk: Any) -> dict[str, Any]:
        errors = zip(("position_cm", "rotation_deg"), inverse_dynamics.pose_errors(chunk, true, recorded, end_effector))
        return {kind: inverse_dynamics.summary(values, episodes) for kind, values in errors}

    return {name: summaries(chunk) for name, chunk in answers.items()}


def main() -> None:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder of a checkpoint")
    add("--data", nargs="+", type=Path, help="archives to measure on (default: the run's held-out episodes)")
    add("--other", action="append", default=[], metavar="NAME=ARCHIVE", help="the same episodes by another method")
    add("--windows", type=at_least(1), default=500, help="how many, spread evenly (default: 500)")
    add("--sampler", help="sampler, such as ancestral100 or ddim10 (default: the configuration's)")
    add("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    add("--weights", choices=("ema", "model"), default="ema")
    add("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    with mistakes(parser):
        figures = measure(args)
    log.info("%-10s %28s %28s", "", "position, cm", "rotation, degrees")
    for name, row in figures.items():
        shown = [f"{part['value']:.2f} ({part['low']:.2f} to {part['high']:.2f})" for part in row.values()]
        log.info("%-10s %28s %28s", name, *shown)
    write_figures(args.json, {"checkpoint": str(args.checkpoint), "errors": figures})


if __name__ == "__main__":
    main()
