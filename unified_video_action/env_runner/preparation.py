"""What an evaluation is prepared from: the checkpoint's configuration, the folder of its run, a device."""

import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from unified_video_action.compat.checkpoint_files import METRICS
from unified_video_action.compat.tensors import digest
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.env.state_reader import StateReader
from unified_video_action.env_runner.distributed import gather, rank_and_size
from unified_video_action.env_runner.runner import EnvRunner
from unified_video_action.env_runner.simulators import build_env
from unified_video_action.inference.planner import Planner
from unified_video_action.instantiate import build_dataclass, instantiate
from unified_video_action.model.samplers import Sampler
from unified_video_action.policy.base import BasePolicy
from unified_video_action.policy.build import build_policy, load_policy, policy_class
from unified_video_action.policy.config import PlannerConfig
from unified_video_action.untrusted import CONFIG, on_hub, read_checkpoint_config
from unified_video_action.workspace import commands

# What may differ from training; of the policy how it is asked, not what it has learned.
CHANGEABLE = ("task.env.", "task.env_runner.", "task.planner_score.", "task.reader.", "policy.")


def read_config(checkpoint: Path, overrides: Sequence[str] = (), simulates: bool = True) -> dict[str, Any]:
    """Configuration of a checkpoint, with `key=value` overrides of its simulator and its runner.

    Raises:
        FileNotFoundError: no such folder, or no config.yaml in it.
        ValueError: it `simulates` but names no simulator, or an override is malformed or concerns anything else.
    """
    config = read_checkpoint_config(checkpoint)
    for override in overrides:
        if "=" not in override or not override.startswith(CHANGEABLE):
            expected = f"KEY=VALUE with a key that starts with {' or '.join(CHANGEABLE)}"
            raise ValueError(f"--set {override}: expected {expected}")
    config = OmegaConf.to_container(OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides))), resolve=True)
    for key in ("env", "env_runner") if simulates else ():
        if not (config.get("task") or {}).get(key):
            raise ValueError(f"{checkpoint / CONFIG}: task.{key} is not set, so there is no simulator to evaluate in")
    return config


def read_remote(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A configuration of `config` whose policy has no weights.

    Raises:
        ValueError: it does not compose, or its policy is trained.
    """
    config = commands.read_config(name, overrides)
    if policy_class(config).STORED:
        raise ValueError(
            f"--config-name {name}: its policy has weights: give --checkpoint, or a server by --set policy=remote "
            "policy.url=ws://HOST:PORT"
        )
    return config


def run_folder(checkpoint: Path) -> Path:
    """Folder of the training run that a checkpoint lies in; of a lone checkpoint, the folder it lies in.

    A shipped checkpoint, which says how it was made and lies in no run, and one of the hub have folders in `outputs`.
    """
    if on_hub(checkpoint):
        return Path("outputs") / "hub" / checkpoint.name
    parent = checkpoint.resolve().parent
    run = parent.parent if parent.name == "checkpoints" else parent
    shipped = (checkpoint / METRICS).is_file() and not (run / "metrics.jsonl").is_file()
    return Path("outputs") / "shipped" / checkpoint.resolve().name if shipped else run


def build_runner(config: Mapping[str, Any], **changes: int | None) -> EnvRunner:
    """The runner of a configuration's task, with those `changes` of its arguments that are not None."""
    settings = {**config["task"]["env_runner"], **{key: value for key, value in changes.items() if value is not None}}
    reader = build_reader(config)
    return instantiate(settings, EnvRunner, "task.env_runner", env_config=config["task"]["env"], reader=reader)


def build_reader(config: Mapping[str, Any]) -> StateReader | None:
    """The reader of states from pictures that a configuration's task names, if any."""
    reader = config["task"].get("reader")
    return None if reader is None else instantiate(reader, StateReader, "task.reader")


def build_planner(config: Mapping[str, Any], candidates: int | None = None) -> Planner | None:
    """The planner of a configuration (policy.planner), with another number of candidates if given; None: there is none.

    Raises:
        ValueError: no score is configured there or as task.planner_score, or a setting is out of range.
    """
    configured = config["policy"].get("planner") or {}
    if candidates is None and not configured:
        return None
    score = configured.get("score") or config["task"].get("planner_score")
    if not score:
        raise ValueError(
            f"--planner {candidates}: the configuration names no score; "
            "set task.planner_score._target_ to a class derived from unified_video_action.env.plan_score.PlanScore"
        )
    changed = {} if candidates is None else {"candidates": candidates}
    return Planner.build(build_dataclass(PlannerConfig, {**configured, "score": score, **changed}, "policy.planner"))


def choose_device(name: str | None) -> str:
    """The device of that name; without one, CUDA where there is a GPU (each process has its own), else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if name is None:
        gpu = "cuda" if rank_and_size()[1] == 1 else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        return gpu if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def _subject(args: Namespace, changes: Sequence[str]) -> tuple[dict, Path, str, Callable[[str], BasePolicy]]:
    """What is evaluated: its configuration, the folder of its run, its name, and what loads it onto a device."""
    if args.checkpoint is not None:
        config = read_config(args.checkpoint, changes)
        name, policy = args.checkpoint.resolve().name, config["policy"]
        return (
            config,
            run_folder(args.checkpoint),
            name,
            lambda to: load_policy(args.checkpoint, args.weights, to, policy),
        )
    config = read_remote(args.config_name, changes)
    folder = Path("outputs") / "remote" / args.config_name
    return config, folder, config["policy"]["url"], lambda _: build_policy(config, Normalizer({})).eval()


def prepare(args: Namespace) -> tuple[BasePolicy, EnvRunner, dict[str, Any]]:
    """Build the policy, its runner and the arguments of `EnvRunner.run` that eval_sim.py's options ask for.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: a mistake in the options, or in what they name.
    """
    if args.sampler is not None:
        Sampler.parse(args.sampler)
    disturbance = {} if args.disturbance is None else {"disturbance": args.disturbance}
    changes = args.set + [f"task.env.{key}={kind}" for key, kind in disturbance.items()]
    config, run, name, load = _subject(args, changes)
    planner, in_simulator = build_planner(config, args.planner), args.planner_model == "simulator"
    if args.planner_model != "policy" and planner is None:
        raise ValueError(
            f"--planner-model {args.planner_model}: no planner is configured; say how many plans with --planner K"
        )
    if disturbance:
        build_env(config["task"]["env"]).close()  # a simulator that knows no such thing says so here
    for new in filter(None, (args.rerun, args.record_dataset)):
        if new.exists():
            raise FileExistsError(f"{new} exists already; choose another name, or remove it")
    if args.rerun and find_spec("rerun") is None:
        raise ValueError("--rerun needs the package rerun-sdk: pip install -e .[rerun]")
    if args.resume and not args.output:
        raise ValueError("--resume needs the folder of the evaluation that is to go on: --output FOLDER")
    output = args.output or run / "evaluation" / f"{Path(name).name}_{args.weights}_{datetime.now():%Y%m%d_%H%M%S}"
    output = gather([output])[0]  # the first process's: others may have started in the next second
    used = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if used and not args.resume and rank_and_size()[0] == 0:  # the first process writes, perhaps before others ask
        raise FileExistsError(f"output folder {output} exists already; choose another with --output, or remove it")
    runner = build_runner(config, n_episodes=args.n_episodes, n_envs=args.n_envs, start_seed=args.seed)
    device, world = choose_device(args.device), None
    policy = load(device)
    if planner is not None and not in_simulator:
        if args.planner_model != "policy":
            world = load_policy(args.planner_model, device=device)
        if not (world or policy).can("forward_dynamics"):
            raise ValueError(
                f"--planner: this {type(world or policy).__name__} was not trained in the mode forward_dynamics, so it "
                "imagines nothing to choose by; try --planner-model simulator or CHECKPOINT"
            )
    facts = {"checkpoint": name, "weights": args.weights, "digest": digest(policy.model.state_dict())}
    facts |= {"sampler": args.sampler or policy.config.sampler, "device": torch.device(device).type} | disturbance
    if args.precision != "no":
        facts |= {"precision": args.precision}
    if asked := [word for word in args.set if word.startswith("policy")]:
        facts |= {"policy": " ".join(asked)}
    if planner is not None:
        facts |= {"planner": planner.description, "planner model": args.planner_model}
    if world is not None:
        facts |= {"planner model digest": digest(world.model.state_dict())}
    if args.resume:
        runner.finished(output, facts)  # there is something to go on with
    return policy, runner, {
        "output_dir": output,
        "sampler": args.sampler,
        "precision": args.precision,
        "planner": planner,
        "try_in_simulator": in_simulator,
        "world": world,
        "videos": args.videos,
        "rerun": args.rerun,
        "dataset": args.record_dataset,
        "title": f"{config.get('name', run.name)}: evaluation",
        "facts": facts,
        "config": config,
        "training_log": run / "metrics.jsonl",
        "journal": True,
        "resume": args.resume,
    }  # fmt: skip
