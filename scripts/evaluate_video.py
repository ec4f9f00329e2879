"""How far imagined clips are from recorded ones as a whole: Frechet distances (paper, Table IV).

    python scripts/evaluate_video.py --checkpoint checkpoints/uva_pusht_small --iterations 1 8
    python scripts/evaluate_video.py --checkpoint ... --i3d i3d_torchscript.pt      FVD too, as in the paper

Clips are the frames of the policy's horizon, imagined from the history of held-out windows and recorded in them. The
distance on features of the frame codec needs no download; it compares runs of one codec, not different ones. Rows: the
codec alone, repeating the newest frame, and the video model with so many steps of generation.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from unified_video_action.workspace.commands import at_least, held_out_parser, mistakes, write_figures

log = logging.getLogger("evaluate_video")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """row -> distance -> its value and interval."""
    import torch

    from unified_video_action.env_runner import preparation
    from unified_video_action.evaluation.frechet import I3D, codec_features, frechet_interval
    from unified_video_action.evaluation.windows import SEED, HeldOutWindows, generators, observation, open_held_out
    from unified_video_action.policy.build import load_policy

    config = preparation.read_config(options.checkpoint, simulates=False)
    policy = load_policy(options.checkpoint, options.weights, preparation.choose_device(options.device))
    if not policy.can("video"):
        raise ValueError(f"{options.checkpoint}: this policy was not trained in the mode video, so it imagines nothing")
    i3d = None if options.i3d is None else I3D(options.i3d, policy.device)
    dataset = open_held_out(config, options.data)
    if dataset.instructions:
        dataset.use_text(policy.encode_text(dataset.instructions))
    windows = HeldOutWindows(policy, dataset, options.clips, options.rows, progress=True)
    camera = policy.task.predicted_cameras[0]
    parts = [range(first, min(first + options.rows, len(windows))) for first in range(0, len(windows), options.rows)]
    latents = windows.batch["future"][camera]  # (N, F, C, h, w)
    clips = {"codec": torch.cat([policy.decode(latents[part].to(policy.device)).cpu() for part in parts])}
    clips["still"] = windows.now.unsqueeze(1).expand(-1, latents.shape[1], -1, -1, -1)
    samplers = {} if options.sampler is None else {"video_sampler": options.sampler}
    for iterations in options.iterations:
        policy.config = replace(policy.config, iterations=iterations, **samplers)
        made = [
            policy.predict_video(observation(windows.part(part)), generators([SEED + i for i in part]))["frames"].cpu()
            for part in parts
        ]
        clips[f"{iterations} iterations"] = torch.cat(made)
        log.info("%d iterations: done", iterations)
    kinds = {"codec features": lambda frames: codec_features(policy.encode(frames.to(policy.device)))}
    if i3d is not None:
        kinds["FVD"] = i3d.features
    found: dict[str, Any] = {row: {} for row in clips}
    for kind, features in kinds.items():
        true = features(windows.future)
        for row, frames in clips.items():
            found[row][kind] = frechet_interval(true, features(frames), windows.episode)
    return {"clips": len(windows), "episodes": len(set(windows.episode.tolist())), "rows": found}


def main(arguments: list[str] | None = None) -> None:
    parser = held_out_parser(__doc__)
    add = parser.add_argument
    add("--clips", type=at_least(2), default=500, help="how many, spread evenly (default: 500)")
    add("--iterations", type=at_least(1), nargs="+", default=[1, 8], help="steps of generation (default: 1 8)")
    add("--i3d", type=Path, help="i3d_torchscript.pt, for FVD")
    add("--json", type=Path, help="also write the figures there")
    options = parser.parse_args(arguments)
    from unified_video_action.env_runner import results

    with mistakes(parser):
        found = measure(options)
    log.info("%d clips of %d episodes", found["clips"], found["episodes"])
    for row, distances in found["rows"].items():
        for kind, value in distances.items():
            log.info("%-14s %-16s %.3f (%.3f to %.3f)", row, kind, *(value[end] for end in ("value", "low", "high")))
    facts = {"checkpoint": str(options.checkpoint), "machine": results.machine(), "commit": results.git_commit()}
    write_figures(options.json, {**facts, **found})


if __name__ == "__main__":
    main()
