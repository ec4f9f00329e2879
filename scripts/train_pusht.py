"""From nothing to a policy that can be shipped: demonstrations, latents, training, 500 episodes, checkpoints/NAME.

    python scripts/train_pusht.py                                uva_pusht_small on a GPU, uva_pusht_mini on a CPU
    python scripts/train_pusht.py --human-only                   without scripted demonstrations
    python scripts/train_pusht.py --actions-only                 the ablation without video learning
    python scripts/train_pusht.py --minutes 5 --episodes 20 --name short training.batch_size=32

config/recipe/ says on which demonstrations, for how long, and with which settings; overrides of the configuration may
follow. Every step is a command that can be typed by hand, and is shown before it runs. Run again after an interruption,
it goes on where it was; the minutes already trained count. The figures are those of the weights as they are shipped.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from unified_video_action.env_runner.results import SETTINGS
from unified_video_action.files import data_folder
from unified_video_action.workspace.commands import (
    ROOT,
    above_zero,
    at_least,
    cores,
    hydra_value,
    inside,
    mistakes,
    run,
    script_parser,
    try_run,
)
from unified_video_action.workspace.parts import read_json

log = logging.getLogger("train_pusht")
KINDS = ("human_only", "scripted_only", "actions_only")  # options that make another result
RECIPES = ROOT / "config" / "recipe"


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe of config/recipe; ValueError that lists them when there is none of that name."""
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        raise ValueError(f"there is no recipe {name!r} in {inside(RECIPES)}: take one with --recipe ({known})")
    return yaml.safe_load(path.read_text())


def human_demonstrations(folder: Path) -> Path | None:
    """The published archive: in the data folder, from an earlier download in `folder`, or from a new one."""
    for candidate in (data_folder(), folder):
        if (archive := candidate / "pusht" / "pusht.zip").is_file():
            log.info("Human demonstrations: %s", archive)
            return archive.resolve()
    if try_run(ROOT / "scripts" / "download.py", "pusht", "--output", folder) == 0:
        return (folder / "pusht" / "pusht.zip").resolve()
    return None


def scripted_demonstrations(folder: Path, options: Mapping[str, float]) -> Path:
    """Demonstrations of the scripted expert with these options of collect_demos.py, from an earlier run or made now."""
    kind = "".join(f"_{name}{value}" for name, value in options.items() if name != "episodes")
    store = folder / "pusht" / f"scripted_{options['episodes']}{kind}.zarr.zip"
    if store.is_file():
        log.info("Scripted demonstrations: %s", store)
    else:
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        output = ("--output", store, "--workers", str(cores()))
        run(ROOT / "scripts" / "collect_demos.py", "--task", "pusht", *words, *output)
    return store.resolve()


def sources(recipe: Mapping[str, Any], folder: Path, human: bool, scripted: bool) -> list[str]:
    """Entries of task.dataset.paths, with what they name there to be read."""
    found: list[tuple[Path, float | None]] = []
    if human:
        if archive := human_demonstrations(folder):
            found.append((archive, recipe["human"]))
        elif not scripted:
            sys.exit("Stopped: there are no human demonstrations. The message above says how to get them.")
        else:
            log.info("The published demonstrations are not to be had: the model will learn from scripted ones alone.")
    for entry in recipe["scripted"] if scripted else []:
        options = {name: value for name, value in entry.items() if name != "share"}
        found.append((scripted_demonstrations(folder, options), entry.get("share")))
    if len(found) == 1:
        return [hydra_value(found[0][0])]
    weights = ["" if share is None else f",weight:{share}" for _, share in found]
    return [f"{{path:{hydra_value(path)}{weight}}}" for (path, _), weight in zip(found, weights, strict=True)]


def own_command(options: argparse.Namespace) -> str:
    """What to type for this result, without what only says where things lie."""
    words = ["python", "scripts/train_pusht.py", "--config-name", options.config_name, "--recipe", options.recipe]
    words += ["--minutes", f"{options.minutes:g}", "--episodes", str(options.episodes)]
    words += ["--scripted", str(options.scripted)] if options.scripted else []
    words += [f"--{name.replace('_', '-')}" for name in KINDS if getattr(options, name)]
    return shlex.join([*words, *options.overrides])


def ship(options: argparse.Namespace, dtype: str) -> None:
    """Evaluate the weights as they will be stored, then store them with what they scored."""
    folder = options.run.resolve()
    latest, stored, evaluation = folder / "checkpoints" / "latest", folder / "stored", folder / "evaluation" / "stored"
    script = ROOT / "scripts" / "export_checkpoint.py"
    common = ("--checkpoint", latest, "--dtype", dtype, "--training-command", own_command(options), "--replace")
    steps = read_json(latest / "trainer_state.json")["step"]
    if read_json(stored / "metrics.json").get("training", {}).get("steps") != steps:
        shutil.rmtree(evaluation, ignore_errors=True)
        run(script, *common, "--output", stored)
    if len(read_json(evaluation / "results.json").get("episodes", [])) != options.episodes:
        interrupted = (evaluation / SETTINGS).is_file()
        if not interrupted:
            shutil.rmtree(evaluation, ignore_errors=True)  # of another number of episodes
        amount = ("--n-episodes", str(options.episodes), "--videos", str(options.videos))
        resume = ["--resume"] if interrupted else []
        run(ROOT / "eval_sim.py", "--checkpoint", stored, *amount, "--output", evaluation, *resume)
    run(script, *common, "--output", options.output.resolve(), "--evaluation", evaluation)
    log.info("\nReport: %s", evaluation / "report.html")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--config-name", help="(default: uva_pusht_small on a GPU, else uva_pusht_mini)")
    add("--recipe", help="name in config/recipe (default: that of --config-name)")
    add("--minutes", type=above_zero, help="training time, all parts of the run together (default: the recipe's)")
    add("--episodes", type=at_least(1), default=500, help="evaluation episodes on unseen seeds (default: 500)")
    add("--videos", type=int, default=3, help="episodes to record as videos (default: 3)")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--human-only", action="store_true", help="use no scripted demonstrations")
    kinds.add_argument("--scripted-only", action="store_true", help="use no human demonstrations")
    add("--scripted", type=at_least(1), help="episodes of each kind of scripted ones (default: the recipe's)")
    add("--actions-only", action="store_true", help="learn no video: the UVA-action ablation")
    add("--name", help="name of the result (default: the configuration's, with these options)")
    add("--data", type=Path, default=ROOT / "data", help="where demonstrations go (default: data)")
    add("--run", type=Path, help="folder of the run; an existing run continues (default: outputs/NAME)")
    add("--output", type=Path, help="checkpoint to write (default: checkpoints/NAME)")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--prepare", action="store_true", help="only make demonstrations and latents")
    parts.add_argument("--train-only", action="store_true", help="end after the training, without an evaluation")
    add("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    options = parser.parse_intermixed_args(arguments)
    if options.config_name is None:
        import torch

        options.config_name = "uva_pusht_small" if torch.cuda.is_available() else "uva_pusht_mini"
    options.recipe = options.recipe or options.config_name
    kind = [name for name in KINDS if getattr(options, name)]
    options.name = options.name or "_".join([options.config_name, *(name.removesuffix("_only") for name in kind)])
    options.run = options.run or ROOT / "outputs" / options.name
    options.output = options.output or ROOT / "checkpoints" / options.name
    with mistakes(parser):
        options.settings = read_recipe(options.recipe)
    options.minutes = options.minutes or options.settings["minutes"]
    if options.scripted:
        options.settings["scripted"] = [{**kind, "episodes": options.scripted} for kind in options.settings["scripted"]]
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    recipe, data = options.settings, options.data.resolve()
    paths = sources(recipe, data, human=not options.scripted_only, scripted=not options.human_only)
    settings = [
        f"--config-name={options.config_name}",
        *(["training=action"] if options.actions_only else []),
        *(recipe["overrides"] + options.overrides),
        f"task.dataset.paths=[{','.join(paths)}]",
        f"data.cache_dir={hydra_value(data / 'cache')}",
    ]
    if options.prepare:  # training makes latents too, where there are none
        run(ROOT / "scripts" / "cache_latents.py", *settings)
        return
    budget = f"trainer.time_budget_minutes={options.minutes:g}"
    run(ROOT / "train.py", *settings, budget, f"output_dir={hydra_value(options.run.resolve())}")
    if not options.train_only:
        ship(options, recipe["dtype"])
        log.info("Shipped: %s", options.output)


if __name__ == "__main__":
    main()
