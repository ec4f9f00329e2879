"""What docs/performance.md reports of a GPU, as one command that may be interrupted and typed again.

    python scripts/gpu_run.py --minutes 12 --data data --output outputs/gpu
    PYTHONPATH=. python scripts/gpu_run.py --data pusht.zip --wheels wheels --collect results
    python scripts/gpu_run.py --minutes 3 --device cpu --output outputs/rehearsal
    python scripts/gpu_run.py --list

It is made for a machine with one GPU, few packages (torch, numpy, safetensors, accelerate, einops and timm) and little
time. Packages that are missing come as wheels from a folder; nothing is downloaded. The parts are done in the order of
--list. Each has a time limit; one that fails or takes too long is recorded, and the next begins. Training gets all
that the parts after it do not need. The same command with the same --output goes on where it was. Results are in
results.json, whole after every part, and a log of each. With less than 6 minutes everything is done in little. On a
CPU it is a rehearsal: a few steps of uva_pusht_mini in place of the larger models, on scripted demonstrations.
"""

from __future__ import annotations

import importlib.machinery
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from unified_video_action.files import data_folder
from unified_video_action.workspace.commands import ROOT, above_zero, cores, script_parser
from unified_video_action.workspace.parts import Command, NotHere, Part, Parts, pack, read_json

log = logging.getLogger("gpu_run")
WHOLE = 12.0  # minutes that the parts' times are meant for; with less, all get less
BRIEF = 6.0  # minutes below which everything is done in little
SAVING = 20.0  # seconds for training to save in, once its time is up
SHARED = 2**28  # bytes of shared memory that a loader process takes: six batches of 512 samples
ARCHIVES = ("pusht.zip", "pusht_cchi_v7_replay_uint8.zarr.zip")  # names of the human demonstrations
CUDA_TESTS = ("tests/policy/test_cuda.py", "tests/inference/test_cuda.py")
STEPS = (16, 100)  # of the samplers that are timed
REHEARSAL = (  # of training, on a CPU
    "trainer.device=cpu",
    *("trainer.max_steps=4", "training.batch_size=8", "training=joint", "task.dataset.val_ratio=0.7"),
)


def parts(options: Namespace) -> list[Part]:
    """What there is to do, the most valuable first; times are those of one GPU."""

    def part(name: str, about: str, minutes: float, commands: Any, results: str, *needs: str) -> Part:
        """`results`: files in the output folder whose content is kept as the part's figures."""
        return Part(name, about, minutes, partial(commands, options), partial(read_figures, options, results), needs)

    def rollouts(name: str, *planner: str) -> Any:
        return partial(rollout_commands, name=name, more=planner)

    planner = rollouts("planner", "--planner", "2" if options.brief else "16")
    evaluation, large = "train/evaluation/*", options.large
    return [
        part("tests", "the tests that need a GPU", 0.7, test_commands, "logs/tests.txt"),
        part("data", "demonstrations and their latents", 0.5 if options.human_only else 1.5, data_commands, ""),
        part("train", f"{options.small}, in the time that is left", 0.0, train_commands, "train/metrics.jsonl"),
        part("export", "its weights, in half precision", 0.3, export_commands, "train/stored/metrics.json", "train"),
        part("evaluate", "episodes of it", 0.7, rollouts("policy"), f"{evaluation}/policy/results.json", "export"),
        part("world_model", "its world model", 1.2, world_commands, f"{evaluation}/world_model/*.json", "export"),
        part("planner", "with a planner", 0.7, planner, f"{evaluation}/planner/results.json", "export"),
        part("latency", f"plans of {large}, 16 and 100 steps", 1.2, latency_commands, "latency/*.json"),
        part("training_rate", f"samples per second of {large}", 0.7, rate_commands, "rate/*.json"),
    ]


def read_figures(options: Namespace, results: str) -> dict[str, Any]:
    """Of JSON its content or its metrics, of metrics.jsonl the newest value of each, of a log its last line."""
    figures: dict[str, Any] = {}
    for path in sorted(options.output.glob(results)) if results else []:
        if path.suffix == ".json":
            content = read_json(path)
            figures[path.stem] = content.get("metrics", content)
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                figures |= json.loads(line)
        else:
            figures[path.stem] = path.read_text().strip().splitlines()[-1]
    return figures


def test_commands(options: Namespace, minutes: float) -> list[Command]:
    if not can_import("pytest", options):
        raise NotHere("pytest is not installed")
    return [Command(("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *CUDA_TESTS))]


def data_words(options: Namespace) -> tuple[str, ...]:
    kinds = ("--human-only",) if options.human_only else ("--scripted", "4") if options.brief else ()
    kinds = ("--scripted-only", "--scripted", "3") if options.device == "cpu" else kinds
    return ("scripts/train_pusht.py", "--config-name", options.small, "--data", str(options.output / "data"), *kinds)


def data_commands(options: Namespace, minutes: float) -> list[Command]:
    copy_data(options.data, options.output / "data" / "pusht")
    return [Command((*data_words(options), "--prepare", *options.overrides))]


def train_commands(options: Namespace, minutes: float) -> list[Command]:
    """Train until a little before the limit, or for --train-minutes."""
    start = 0.3 if options.brief else 0.75  # minutes to start in, and to save and validate at the end
    total = options.train_minutes or trained_minutes(options) + max(minutes - start, 0.1)
    settings = REHEARSAL if options.device == "cpu" else (f"trainer.num_workers={loader_processes()}",)
    words = ("--train-only", "--minutes", f"{total:.2f}", "--run", str(options.output / "train"), *settings)
    return [Command((*data_words(options), *words, *options.overrides), grace=SAVING)]


def export_commands(options: Namespace, minutes: float) -> list[Command]:
    trained = trained_minutes(options)
    if not trained:
        raise NotHere("there is no checkpoint yet: the part train makes it")
    made = ["python", "scripts/train_pusht.py", "--config-name", options.small, "--minutes", f"{trained:.1f}"]
    made += ["--human-only"] if options.human_only else []
    words = ("--checkpoint", str(options.output / "train" / "checkpoints" / "latest"), "--output", str(stored(options)))
    words += ("--dtype", "float16", "--replace")
    command = shlex.join([*made, *options.overrides])
    return [Command(("scripts/export_checkpoint.py", *words, "--training-command", command))]


def rollout_commands(options: Namespace, minutes: float, name: str, more: tuple[str, ...]) -> list[Command]:
    """eval_sim.py on the stored weights, or the rest of what an earlier call has begun."""
    folder = measured(options, name)
    results, begun = folder / "results.json", (folder / "journal.json").is_file()
    if folder.exists() and not begun and not results.is_file():
        shutil.rmtree(folder)
    words = ("eval_sim.py", "--checkpoint", str(stored(options)), "--device", options.device, "--output", str(folder))
    words += ("--n-episodes", "4" if options.brief else "100", "--videos", "1" if can_import("av", options) else "0")
    few = ("--set", "task.env_runner.max_steps=16") if options.device == "cpu" else ()
    return [Command((*words, *more, *few, *(["--resume"] if begun else [])), results)]


def world_commands(options: Namespace, minutes: float) -> list[Command]:
    folder = measured(options, "world_model")
    amount = ("--windows", "16", "--samples", "2") if options.brief else ("--windows", "500", "--samples", "8")
    words = ("--checkpoint", str(stored(options)), "--output", str(folder), "--device", options.device)
    return [Command(("scripts/evaluate_world_model.py", *words, *amount))]


def benchmark(options: Namespace, name: str, *more: str) -> Command:
    on_cpu, makes = options.device == "cpu", options.output / f"{name}.json"
    makes.parent.mkdir(parents=True, exist_ok=True)
    words = ("scripts/benchmark.py", "--config-name", options.large, "--device", options.device, *more)
    words += ("--precision", "no" if on_cpu else "bf16", "--json", str(makes))
    words += ("--repeats", "3", "--warmup", "1") if options.brief else ()
    return Command((*words, *(() if on_cpu else ("vae.weights=random",))), makes)


def latency_commands(options: Namespace, minutes: float) -> list[Command]:
    wanted = {f"latency/ancestral{n}": ("--only", "latency", "--sampler", f"ancestral{n}") for n in STEPS}
    wanted = {"latency/naive": ("--only", "naive"), **wanted}
    wanted |= {} if options.device == "cpu" else {"latency/launches": ("--only", "launches")}
    return [benchmark(options, name, *words) for name, words in wanted.items()]


def rate_commands(options: Namespace, minutes: float) -> list[Command]:
    sizes, workers = (("2",), "0") if options.device == "cpu" else (("32", "128"), "4")
    common = ("--only", "training", "--workers", workers, "--training-batch")
    return [benchmark(options, f"rate/batch_{size}", *common, size) for size in sizes]


def stored(options: Namespace) -> Path:
    """The exported weights, in the folder of the training, so that reports show its curves."""
    return options.output / "train" / "stored"


def measured(options: Namespace, name: str) -> Path:
    """Folder of a measure of the exported weights."""
    if not (stored(options) / "config.yaml").is_file():
        raise NotHere("there are no weights yet: the part export makes them")
    steps = read_json(stored(options) / "metrics.json").get("training", {}).get("steps", 0)
    return options.output / "train" / "evaluation" / f"step_{steps:08d}" / name


def trained_minutes(options: Namespace) -> float:
    state = read_json(options.output / "train" / "checkpoints" / "latest" / "trainer_state.json")
    return state.get("elapsed_seconds", 0.0) / 60


def loader_processes() -> int:
    """As many as cores and shared memory allow; with 0 training prepares its batches itself."""
    fitting = shutil.disk_usage("/dev/shm").free // SHARED if os.path.isdir("/dev/shm") else 0
    return max(0, min(14, cores() - 2, fitting))


def can_import(package: str, options: Namespace) -> bool:
    """Whether the commands can import a package."""
    return importlib.machinery.PathFinder.find_spec(package, [str(options.output / "site"), *sys.path]) is not None


def copy_data(given: Path | None, folder: Path) -> None:
    """The human demonstrations as folder/pusht.zip, and beside it the scripted ones that there are."""
    if given is None:
        return
    source = given / "pusht" if (given / "pusht").is_dir() else given
    human = [source] if source.is_file() else [source / name for name in ARCHIVES if (source / name).is_file()]
    copies = {folder / path.name: path for path in source.glob("scripted_*.zarr.zip")}
    if human:
        copies[folder / "pusht.zip"] = human[0]
    if not copies:
        raise NotHere(f"--data {given}: neither {' nor '.join(ARCHIVES)} is there, nor scripted_*.zarr.zip")
    folder.mkdir(parents=True, exist_ok=True)
    for target, path in copies.items():
        if not target.exists():
            shutil.copy(path, target)


def environment(options: Namespace) -> dict[str, str]:
    """That of the commands: this project and the wheels can be imported, data is in the output folder."""
    site = options.output / "site"
    if options.wheels and not site.is_dir():
        wheels = sorted(map(str, options.wheels.glob("*.whl")))
        if not wheels:
            raise ValueError(f"--wheels {options.wheels}: there is no wheel in it")
        unfinished = site.with_suffix(".unfinished")
        install = ("install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(unfinished), *wheels)
        subprocess.run([sys.executable, "-m", "pip", *install], check=True)
        unfinished.rename(site)
    paths = [str(ROOT), *([str(site)] if site.is_dir() else []), os.environ.get("PYTHONPATH", "")]
    return {
        **{"OMP_NUM_THREADS": "1", **os.environ},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "TQDM_MININTERVAL": "15",  # seconds; bars fill logs
        "UVA_DATA_DIR": str(options.output / "data"),
    }


def main(arguments: list[str] | None = None) -> None:
    began = time.monotonic()
    options = parse_arguments(arguments)
    known = parts(options)
    if options.list:
        log.info("\n".join(f"{part.name:14} {part.about}" for part in known))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the running part may save
    run = Parts(known, options.output, environment(options))

    def collect() -> None:
        if options.collect:
            pack(options.output, options.collect, {"site", "data", "checkpoints"}, "train/stored/*.safetensors")

    try:
        run.do(options.parts, began + 60 * options.minutes, min(1.0, options.minutes / WHOLE), collect)
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on.")
    finally:
        collect()
        run.log_owed()


def parse_arguments(arguments: list[str] | None) -> Namespace:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--minutes", type=above_zero, default=WHOLE, help="time of this call (default: 12)")
    add("--parts", help="names with commas between (default: all)")
    add("--list", action="store_true", help="only list the parts")
    data = "human demonstrations, or a folder that holds them, also as pusht/ (default: $UVA_DATA_DIR, else data)"
    add("--data", type=Path, default=data_folder() if data_folder().is_dir() else None, help=data)
    add("--human-only", action="store_true", help="use no scripted demonstrations (missing ones are made otherwise)")
    add("--train-minutes", type=above_zero, help="training time, including earlier calls (default: the rest)")
    add("--wheels", type=Path, help="folder of wheels with the packages that are missing")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    add("--output", type=Path, default=ROOT / "outputs" / "gpu", help="folder of this run (default: outputs/gpu)")
    add("--collect", type=Path, help="folder for the results: pieces of weights, all else in one archive")
    add("overrides", nargs="*", metavar="key=value", help="changes to the configuration of the training")
    options = parser.parse_intermixed_args(arguments)
    for name in ("data", "wheels", "output", "collect"):
        value = getattr(options, name)
        setattr(options, name, value and value.expanduser().resolve())
    options.brief = options.device == "cpu" or options.minutes < BRIEF
    models = ("uva_pusht_mini", "uva_pusht_mini") if options.device == "cpu" else ("uva_pusht_small", "uva_pusht")
    options.small, options.large = models
    names = [part.name for part in parts(options)]
    options.parts = options.parts.split(",") if options.parts else names
    if unknown := set(options.parts) - set(names):
        parser.error(f"--parts: there is no {', '.join(sorted(unknown))}; known are {', '.join(names)}")
    return options


if __name__ == "__main__":
    main()
