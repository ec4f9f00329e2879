"""Run a policy on an arm: observe, plan, and command the arm at its own rate, with all of the safety.

    run --robot sim --checkpoint DIR --dry-run     look at what would be sent, and confirm it: needed once
    run --robot sim --checkpoint DIR               the policy runs in a process of its own on this machine
    run --robot arx5 --server ws://HOST:8000       the policy runs on another machine (eval_real.py serve)

The operator types, each followed by Enter:

    (nothing)   start                     hold      brake and hold; so does Ctrl-C, at once
    resume      go on after a stop        release   let go of the arm, which must be at rest
    quit        brake, hold and end

Ctrl-C holds. Pressed again within two seconds, in a fright, it changes nothing; later it ends the program. It never
releases the arm: only `release` does, or --release-on-exit at the end. SIGTERM brakes, holds and ends; so does SIGHUP,
when the terminal is lost. What an arm does once its program has ended is its driver's matter: the X5's sinks slowly, so
support it before you quit.

Exit codes: 0 the operator or the episode's time ended it; 1 a mistake in the options or configuration, or no arm; 2 a
dry run that was not confirmed; otherwise that of the stop after which nobody resumed, as docs/real_robot.md lists them.
"""

from __future__ import annotations

import argparse
import gc
import logging
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unified_video_action.instantiate import build_dataclass, instantiate
from unified_video_action.real.control import dry_run
from unified_video_action.real.control.chunks import BLENDS
from unified_video_action.real.control.limits import SafetyLimits
from unified_video_action.real.control.loop import Control
from unified_video_action.real.control.safety import SafetyStop
from unified_video_action.real.control.watchdog import LoopSettings
from unified_video_action.real.planner import PlannerError
from unified_video_action.real.robots.archive import ENDING
from unified_video_action.real.robots.interface import RobotError, Setup
from unified_video_action.real.robots.recorder import EpisodeRecorder
from unified_video_action.real.serving.client import RemotePlanner, start_server_process, stop_server_process
from unified_video_action.untrusted import local_checkpoint

log = logging.getLogger(__name__)

ROBOTS = Path(__file__).parents[3] / "config" / "real"
OUTPUTS = Path("outputs") / "real"
FIRST_PLAN = 120.0  # seconds for a policy to get going
SAMPLERS = {16: "ancestral16", 100: "ancestral100"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--robot", required=True, help="sim, arx5, or a YAML file with the sections setup, safety and loop")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--checkpoint", type=Path, help="folder of a checkpoint, to run on this machine")
    where.add_argument("--server", metavar="ws://HOST:PORT", help="a running eval_real.py serve")
    add("--key-file", type=Path, metavar="FILE", help="the server's key, where it asks for one")
    add("--task", metavar="TEXT", help="the instruction, for a policy that follows one")
    add("--seed", type=int, default=0, help="seed of the policy's noise (default: 0)")
    add("--sampler", help="with --checkpoint: kind and steps, such as ddim10 (default: the checkpoint's)")
    add("--steps", type=int, choices=SAMPLERS, help="with --checkpoint: steps of the paper's sampler, in short")
    add("--device", help="with --checkpoint: cpu, cuda, ... (default: cuda where there is one)")
    add("--blend", choices=BLENDS, help="how a plan follows another (default: the robot's loop.blend)")
    add("--plan-rate", type=float, metavar="HZ", help="plans per second at most (default: loop.plan_rate)")
    add("--smooth", action="store_true", help="average actions over three steps, as the published code does")
    add("--episode-seconds", type=float, help="end after so long (default: when the operator says so)")
    add(
        "--record",
        type=Path,
        metavar="FOLDER",
        help=f"where episodes are recorded, as TIME.zarr.zip (default: {OUTPUTS})",
    )
    add("--auto-resume", action="store_true", help="go on by itself after a stop that has mended itself")
    add("--release-on-exit", action="store_true", help="let go of the arm at the end")
    add("--dry-run", action="store_true", help="show what would be sent, send nothing, and ask for a confirmation")
    add("--confirmations", type=Path, default=OUTPUTS / "confirmed", help="folder of confirmed dry runs")
    add(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, such as safety.linear_speed=0.2",
    )


def start(args: argparse.Namespace) -> int:
    """Run until somebody or something ends it; main thread only. Returns the exit code.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: a mistake in the options or the configuration.
    """
    robot = read_robot(args)
    limits = build_dataclass(SafetyLimits, robot["safety"], "safety")
    settings = build_dataclass(LoopSettings, robot["loop"], "loop")
    try:
        with ExitStack() as stack:
            planner = _planner(args, stack)
            policy = planner.description
            policy.require_end_effector()  # another policy is refused before anything is connected
            if policy.follows_text and not args.task:
                known = " | ".join(policy.instructions[:20])
                raise ValueError(f"--task TEXT: this policy follows instructions; it was trained on: {known}")
            confirmation = dry_run.digest(robot, policy)
            if not args.dry_run:
                dry_run.require_confirmation(args.confirmations, confirmation, shlex.join([*sys.argv, "--dry-run"]))
            setup = instantiate(robot["setup"], Setup, "setup")
            for each in (*setup.cameras, setup.arm):
                each.connect()
                stack.callback(each.close)
            output = (args.record or OUTPUTS) / time.strftime("%Y-%m-%d_%H-%M-%S")
            if not args.dry_run:
                return _run(args, setup, planner, limits, settings, output)
            log.info("dry run: the arm gets no command")
            found = dry_run.rehearse(setup, planner, limits, settings, args.task, args.seed)
            report = output.with_name(f"{output.name}.dry_run.json")
            dry_run.write_report(report, found, setup.arm.rate)
            if not _accepted(found, setup.arm.rate, report):
                log.error("not confirmed")
                return 2
            about = {"robot": args.robot, "policy": policy.name, "report": str(report)}
            log.info("confirmed: %s", dry_run.confirm(args.confirmations, confirmation, about))
            return 0
    except (RobotError, PlannerError, SafetyStop) as error:
        log.error("%s", error)
        return 1


def read_robot(args: argparse.Namespace) -> dict[str, Any]:
    """The robot's configuration, with what the options change.

    Raises:
        FileNotFoundError: no such robot. ValueError: what is in the file, or in --set, makes no sense.
    """
    path = Path(args.robot) if args.robot.endswith((".yaml", ".yml")) else ROBOTS / f"{args.robot}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in ROBOTS.glob("*.yaml")))
        raise FileNotFoundError(f"--robot {args.robot}: no {path}; known robots: {known}, or give a YAML file")
    try:
        robot = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(args.set)))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} or --set: {error}") from error
    if set(robot) != {"setup", "safety", "loop"}:
        raise ValueError(f"{path}: sections {', '.join(robot)}; expected setup, safety and loop")
    loop = robot["loop"] = dict(robot["loop"] or {})
    options = ("blend", "plan_rate", "episode_seconds", "auto_resume", "release_on_exit")
    given = {name: getattr(args, name) for name in options}
    loop |= {name: value for name, value in given.items() if value is not None and value is not False}  # 0 is refused
    loop |= {"smooth": 3} if args.smooth else {}
    return robot


def _planner(args: argparse.Namespace, stack: ExitStack) -> RemotePlanner:
    key = args.key_file.read_text().strip() if args.key_file else None
    endpoint = args.server
    if args.checkpoint is not None:
        sampler = args.sampler or SAMPLERS.get(args.steps)
        options = ["--sampler", sampler] if sampler else []
        options += ["--device", args.device] if args.device else []
        log.info("starting the policy %s", args.checkpoint)
        args.checkpoint = local_checkpoint(args.checkpoint)
        process, endpoint = start_server_process(args.checkpoint, options)
        stack.callback(stop_server_process, process)
    elif args.sampler or args.steps or args.device:
        raise ValueError("--sampler, --steps and --device are the server's: give them to eval_real.py serve")
    planner = RemotePlanner(endpoint, key, plan_seconds=FIRST_PLAN)
    stack.callback(planner.close)
    return planner


def _accepted(found: list[dry_run.Rehearsal], rate: float, report: Path) -> bool:
    """Show what would be sent, and ask the operator."""
    for number, each in enumerate(found, 1):
        log.info("plan %d: %s", number, each.line(rate))
    log.info("every pose that would be sent: %s", report)
    if any(each.stop for each in found):
        log.error("the arm would have been stopped")
        return False
    log.info("Is this safe to send? Type yes and Enter to confirm:")
    return sys.stdin.readline().strip().lower() == "yes"


def _run(
    args: argparse.Namespace, setup: Setup, planner: RemotePlanner, limits: SafetyLimits, settings: LoopSettings,
    output: Path,
) -> int:  # fmt: skip
    about = {"robot": args.robot, "policy": planner.description.name, "source": str(args.checkpoint or args.server)}
    about |= {"instruction": args.task, "seed": args.seed}
    path = output.with_name(output.name + ENDING)
    recorder = EpisodeRecorder(path, max(len(setup.cameras), 1), attributes=about, only_motions=True)

    def warm() -> None:
        planner.plan_seconds = settings.timeouts.plan  # from now on it is known how long a plan takes
        log.info("ready. Enter starts, and the arm moves")

    with recorder:
        control = Control(setup, planner, limits, settings, recorder, on_ready=warm)
        control.planning.text, control.planning.seed = args.task, args.seed
        gc.collect()
        gc.freeze()  # what is there now stays; the collector need not walk through it between two ticks
        with _operated(control):
            stop = control.run()
    for line in control.statistics.lines():
        log.info("%s", line)
    control.statistics.write(output.with_name(f"{output.name}.statistics.json"))
    log.info("ended: %s; recorded: %s", stop, path)
    return stop.reason.code


@contextmanager
def _operated(control: Control) -> Iterator[None]:
    """Lines of standard input and signals become requests."""

    def read() -> None:
        try:
            for line in sys.stdin:
                control.requests.put(line.strip().lower() or "start")
        except (OSError, ValueError) as error:  # a terminal that is lost
            log.warning("the operator's lines cannot be read any more: %s", error)
        finally:
            control.requests.put("gone")

    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    threading.Thread(target=read, name="operator", daemon=True).start()
    signals = {signal.SIGINT: "ctrl_c", signal.SIGTERM: "term"}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # by nohup
        signals[signal.SIGHUP] = "term"
    before = {number: signal.getsignal(number) for number in signals}
    for number, asked in signals.items():
        signal.signal(number, lambda *_, asked=asked: control.requests.put(asked))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
