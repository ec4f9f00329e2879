"""Publish a checkpoint on the Hugging Face hub, with a model card of what it scored.

python scripts/push_to_hub.py --checkpoint checkpoints/uva_pusht_small --repo USER/NAME
python eval_sim.py --checkpoint hf://USER/NAME                    anybody evaluates it, or load_policy("hf://USER/NAME")

The checkpoint is one that scripts/export_checkpoint.py has made, whose metrics.json lists its files; they are checked
and sent in one commit. `hf auth login` or HF_TOKEN says who you are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_video_action.workspace.commands import mistakes, script_parser

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

log = logging.getLogger("push_to_hub")
USE = """
## Use

```python
from unified_video_action.policy.build import load_policy

policy = load_policy("hf://{repo}")
```

Weights are safetensors and nothing in this repository is executed. Licence: {licence}.
"""


def model_card(text: str, repo: str, name: str, metrics: Mapping[str, Any], licence: str) -> ModelCard:
    """The README.md of a checkpoint as a model card, whose header has the figures of metrics.json."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    evaluation, intervals = metrics.get("evaluation", {}), metrics.get("intervals", {})
    results = [
        EvalResult(
            task_type="robotics",
            dataset_type="simulation",
            dataset_name=f"{metrics['episodes']} episodes of {name} from seed {evaluation['start_seed']} on",
            metric_type=key,
            metric_name=f"{key}, 95 % from {found['low']:.4f} to {found['high']:.4f} ({found['method']})",
            metric_value=round(metrics[key], 4),
        )
        for key, found in intervals.items()
        if key != "level"
    ]
    data = ModelCardData(
        license=licence,
        library_name="unified_video_action",
        pipeline_tag="robotics",
        tags=["robotics", "diffusion-policy", "video-prediction"],
        **({"model_name": repo.rpartition("/")[2], "eval_results": results} if results else {}),
    )
    if command := evaluation.get("command"):
        text = text.replace(command, f"python eval_sim.py --checkpoint hf://{repo}")
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}{USE.format(repo=repo, licence=licence)}")


def push(folder: Path, repo: str, licence: str, private: bool) -> str:
    """Send the files that metrics.json lists, and a card; the address of the commit.

    Raises:
        FileNotFoundError, ValueError: the checkpoint is not whole. OSError: the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    from unified_video_action.compat.checkpoint_files import METRICS, fault, listed, read_json
    from unified_video_action.untrusted import read_checkpoint_config

    for name in (METRICS, "README.md"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"--checkpoint {folder}: {name} is missing; scripts/export_checkpoint.py writes it")
    metrics, config = read_json(folder / METRICS), read_checkpoint_config(folder)
    written = metrics.get("files") or listed(folder)  # older checkpoints have no list
    if wrong := fault(folder, written):
        raise ValueError(f"--checkpoint {folder}: {wrong}")
    card = model_card((folder / "README.md").read_text(), repo, config["name"], metrics, licence)
    files = [CommitOperationAdd(name, folder / name) for name in {*written, METRICS} - {"README.md"}]
    files.append(CommitOperationAdd("README.md", str(card).encode()))
    hub = HfApi()
    hub.create_repo(repo, private=private, exist_ok=True)
    return hub.create_commit(repo, files, commit_message=f"{folder.name} of unified_video_action").commit_url


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder that scripts/export_checkpoint.py has written")
    add("--repo", required=True, metavar="USER/NAME", help="repository on the hub; made where there is none")
    add("--licence", default="mit", help="licence of the weights, as the hub names it (default: mit)")
    add("--private", action="store_true", help="make the repository private")
    options = parser.parse_args(arguments)
    with mistakes(parser):
        log.info("published: %s", push(options.checkpoint, options.repo, options.licence, options.private))


if __name__ == "__main__":
    main()
