"""eval_real.py run, as it is typed: the dry run that it asks for, the operator, signals, and a server that dies."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.real.fakes import HOME, LIMITS, ROBOTS, FakeArm, FakeCamera, bench, command_faults
from tests.real.server_support import INSTRUCTIONS, SIZE, write_checkpoint
from unified_video_action.instantiate import build_dataclass
from unified_video_action.real.control import dry_run, running
from unified_video_action.real.control.limits import SafetyLimits
from unified_video_action.real.control.loop import Control
from unified_video_action.real.control.watchdog import LoopSettings, Phase, Timeouts
from unified_video_action.real.robots.archive import RECORDS, Recording
from unified_video_action.real.robots.interface import ArmCommand, Setup
from unified_video_action.real.serving.client import RemotePlanner, start_server_process, stop_server_process

ROOT = Path(__file__).parents[2]
NEEDS_SIM = pytest.mark.skipif(find_spec("mujoco") is None, reason="MuJoCo is not installed: no simulated arm")
PATIENT = {"frame": 60.0, "state": 60.0, "action": 5.0, "plan": 5.0, "overrun": 60.0}  # this computer may be busy
WAIT = 240.0  # seconds for whatever is waited for


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("hand") / "checkpoint")


def options(*given: str):
    parser = ArgumentParser()
    running.add_arguments(parser)
    return parser.parse_args(given)


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def plans_of(counts: dict[str, int]) -> int:
    """Also those that came too late on a busy computer."""
    return counts.get("plans", 0) + counts.get("stale_plans", 0)


def test_a_robots_configuration_is_read_with_what_the_options_change() -> None:
    robot = running.read_robot(
        options("--robot", "sim", "--server", "ws://x:1", "--blend", "latest", "--smooth", "--plan-rate", "4")
    )
    assert robot["loop"]["blend"] == "latest" and robot["loop"]["smooth"] == 3 and robot["loop"]["plan_rate"] == 4
    assert "episode_seconds" not in robot["loop"] and "auto_resume" not in robot["loop"]
    robot = running.read_robot(
        options("--robot", str(ROBOTS / "sim.yaml"), "--server", "x", "--set", "safety.linear_speed=0.2")
    )
    assert robot["safety"]["linear_speed"] == 0.2
    with pytest.raises(FileNotFoundError, match="known robots: arx5, sim"):
        running.read_robot(options("--robot", "ur5", "--server", "x"))
    with pytest.raises(ValueError, match="sections"):
        running.read_robot(options("--robot", "sim", "--server", "x", "--set", "safe.speed=1"))
    wrong = options("--robot", "sim", "--server", "x", "--set", "safety.linear_sped=1")
    with pytest.raises(ValueError, match="safety.linear_sped"):
        running.start(wrong)


def test_a_confirmation_is_for_one_configuration_and_one_policy(tmp_path: Path, checkpoint: Path) -> None:
    robot = running.read_robot(options("--robot", "sim", "--server", "x"))
    policy = bench().planner.description
    name = dry_run.digest(robot, policy, checkpoint)
    dry_run.confirm(tmp_path, name, {})
    dry_run.require_confirmation(tmp_path, name, "command")
    convenient = running.read_robot(options("--robot", "sim", "--server", "x", "--episode-seconds", "9"))
    assert dry_run.digest(convenient, policy, checkpoint) == name
    faster = running.read_robot(options("--robot", "sim", "--server", "x", "--set", "safety.linear_speed=0.9"))
    (checkpoint / "note.txt").write_text("other weights, say")
    others = [dry_run.digest(faster, policy, checkpoint), dry_run.digest(robot, policy, checkpoint)]
    (checkpoint / "note.txt").unlink()
    for other in [*others, dry_run.digest(robot, bench(step_seconds=0.05).planner.description, checkpoint)]:
        assert other != name
        with pytest.raises(ValueError, match="(?s)dry run.*type this"):
            dry_run.require_confirmation(tmp_path, other, "type this")


def test_a_rehearsal_sends_nothing_and_shows_what_it_would_send(tmp_path: Path) -> None:
    made = bench()

    def rehearse() -> list[dry_run.Rehearsal]:
        camera = FakeCamera(made.time)
        made.planner.where = lambda: (HOME, camera.latest().time)

        def sleep(seconds: float) -> None:
            time.sleep(0.001)  # the camera is looked at by a thread of its own
            made.time.sleep(seconds)

        setup = Setup(made.arm, (camera,))
        return dry_run.rehearse(setup, made.planner, made.limits, LoopSettings(), now=made.time, sleep=sleep)

    found = rehearse()
    assert len(found) == 3 and not made.arm.sent and not made.arm.calls
    for each in found:
        assert each.stop is None and len(each.poses) == 301  # 15 steps of 0.1 s at 200 Hz
    commands = [ArmCommand(tick / 200, pose, 0.0) for tick, pose in enumerate(found[0].poses)]
    assert not command_faults(commands, made.limits)
    assert re.search(r"1.50 s from .* at most 0\.\d+ m/s, .*ticks clipped: none", found[0].line(200.0))
    dry_run.write_report(tmp_path / "dry_run.json", found, 200.0)
    assert len(json.loads((tmp_path / "dry_run.json").read_text())["plans"][0]["poses"]) == 301
    made.planner.path = lambda time: HOME - 0.4 * np.outer([0, 0, 1, 0], [0, 0, 0, 1])
    assert re.search(r"clipped: .*step \d+.*table \d+", rehearse()[0].line(200.0))
    made.planner.spoil = lambda actions: actions * np.nan
    assert all("not finite" in each.stop for each in rehearse())


class Server:
    """A policy server as a process, always at the same port."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self.process, self.endpoint = start_server_process(checkpoint, ("--device", "cpu"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def again(self) -> None:
        port = self.endpoint.rsplit(":", 1)[1]
        self.process, _ = start_server_process(self._checkpoint, ("--device", "cpu", "--port", port))


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Server]:
    server = Server(checkpoint)
    yield server
    stop_server_process(server.process)


class Program:
    """eval_real.py run, whose messages a test reads and to which it types."""

    def __init__(self, folder: Path, server: Server, *more: str) -> None:
        command = [sys.executable, str(ROOT / "eval_real.py"), "run", "--robot", "sim", "--server", server.endpoint]
        command += ["--task", INSTRUCTIONS[0], "--confirmations", str(folder / "confirmed"), *more]
        patient = [f"loop.timeouts.{name}=60.0" for name in PATIENT]
        command += ["--set", f"setup.size=[{SIZE},{SIZE}]", *patient]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        self.output: list[str] = []
        self._reader = threading.Thread(target=lambda: self.output.extend(self.process.stdout), daemon=True)
        self._reader.start()

    def expect(self, pattern: str) -> None:
        wait_for(lambda: re.search(pattern, "".join(self.output)) is not None or not self._reader.is_alive())
        assert re.search(pattern, "".join(self.output)), "".join(self.output)

    def types(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def ends(self) -> int:
        return self.process.wait(WAIT)


@NEEDS_SIM
def test_from_the_dry_run_to_ctrl_c(tmp_path: Path, server: Server) -> None:
    refused = Program(tmp_path, server)
    assert refused.ends() == 1
    refused.expect(r"(?s)no dry run .* was confirmed.*eval_real.py run --robot sim.*--dry-run")

    rehearsal = Program(tmp_path, server, "--dry-run", "--record", str(tmp_path / "dry"))
    rehearsal.expect("plan 3: .* m/s")
    rehearsal.types("yes")
    assert rehearsal.ends() == 0
    assert len(json.loads((tmp_path / "dry" / "dry_run.json").read_text())["plans"]) == 3

    run = Program(tmp_path, server, "--record", str(tmp_path / "run"))
    run.expect("ready. Enter starts")
    run.types("")
    run.expect("started: the arm moves")
    records = tmp_path / "run" / "episode.recording" / RECORDS
    wait_for(lambda: records.read_bytes().count(b"\xa4plan") > 2)
    run.process.send_signal(signal.SIGINT)
    run.expect("STOP ctrl_c")
    run.expect("the arm holds")
    run.types("release")
    run.expect("released: the arm can be moved by hand")
    run.types("quit")
    assert run.ends() == 130, "".join(run.output)
    statistics = json.loads((tmp_path / "run" / "statistics.json").read_text())
    assert [each["reason"] for each in statistics["stops"]] == ["ctrl_c"] and plans_of(statistics["counts"]) > 2
    recording = Recording.open(tmp_path / "run" / "episode.zarr.zip")
    times, poses = recording.arrays["command_time"], recording.arrays["command_pose"]
    assert len(times) > 10
    robot = running.read_robot(options("--robot", "sim", "--server", "x"))
    limits = build_dataclass(SafetyLimits, robot["safety"], "safety")
    commands = [ArmCommand(at, pose, 0.0) for at, pose in zip(times, poses)]
    assert not command_faults(commands, limits), command_faults(commands, limits)


def test_a_server_that_is_killed_and_comes_back(server: Server) -> None:
    """A real one, in a process of its own; the policy's weights are random, so that it asks for much nonsense."""
    planner = None
    try:
        arm, camera = FakeArm(), FakeCamera(size=SIZE)
        planner = RemotePlanner(server.endpoint, plan_seconds=WAIT)
        limits = SafetyLimits(**LIMITS)

        def ready() -> None:
            planner.plan_seconds = settings.timeouts.plan
            control.requests.put("start")

        settings = LoopSettings(timeouts=Timeouts(**PATIENT), auto_resume=True)
        control = Control(Setup(arm, (camera,)), planner, limits, settings, on_ready=ready)
        control.planning.text = INSTRUCTIONS[0]
        problems: list[BaseException] = []

        def operate() -> None:
            try:
                wait_for(lambda: plans_of(control.statistics.counts) > 5)
                server.kill()
                wait_for(lambda: control.phase is Phase.HOLDING)
                sent = len(arm.sent)
                time.sleep(1.0)
                assert len(arm.sent) == sent, "it moved without a server"
                server.again()
                wait_for(lambda: control.phase is Phase.RUNNING)
                plans = plans_of(control.statistics.counts)
                wait_for(lambda: plans_of(control.statistics.counts) > plans + 5)
            except BaseException as error:
                problems.append(error)
            control.requests.put("quit")

        operator = threading.Thread(target=operate)
        operator.start()
        stop = control.run()
        operator.join()
        if problems:
            raise problems[0]
        reasons = [each["reason"] for each in control.statistics.stops]
        assert {"lost_server", "no_action"} & set(reasons) and reasons[-1] == "quit", reasons
        assert stop.reason.title == "quit"
        assert not command_faults(arm.sent, limits), command_faults(arm.sent, limits)
    finally:
        if planner is not None:
            planner.close()
