"""eval_real.py run, as it is typed: the dry run that it asks for, the operator, signals, and a server that dies."""

import dataclasses
import errno
import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from tests.real.fakes import HOME, LIMITS, ROBOTS, FakeArm, FakeCamera, bench, command_faults, until
from tests.real.server_support import INSTRUCTIONS, SIZE, describe, instant_core, serve
from unified_video_action.dataset.formats.umi import archives
from unified_video_action.instantiate import build_dataclass
from unified_video_action.real.control import dry_run, observer, running
from unified_video_action.real.control.limits import SafetyLimits
from unified_video_action.real.control.loop import Control
from unified_video_action.real.control.watchdog import LoopSettings, Phase, Timeouts
from unified_video_action.real.robots.archive import RECORDS, Recording
from unified_video_action.real.robots.interface import ArmCommand, Setup
from unified_video_action.real.serving.client import RemotePlanner

ROOT = Path(__file__).parents[2]
WAIT = 240.0  # seconds for whatever is waited for
PATIENT = {"frame": 60.0, "state": 60.0, "action": 5.0, "plan": 5.0, "overrun": 60.0}  # this computer may be busy
STAY = np.tile(np.array([0, 0, 0, 1, 0, 0, 0, 1, 0, 0.05], np.float32), (1, 16, 1))  # a plan to stay


def options(*given: str):
    parser = ArgumentParser()
    running.add_arguments(parser)
    return parser.parse_args(("--robot", "sim", *given))


@contextmanager
def policy_server(port: int = 0) -> Iterator[int]:
    """The port of a server whose policy stays where it is."""
    with instant_core() as (core, session), serve(core, "--port", str(port)) as ports:
        session.plan = lambda slots, going_on=None: STAY
        yield ports["websocket"]


def plans_of(counts: dict[str, int]) -> int:
    """Also those that came too late on a busy computer."""
    return counts.get("plans", 0) + counts.get("stale_plans", 0)


def test_a_robots_configuration_is_read_with_what_the_options_change() -> None:
    for name in ("sim", "arx5"):
        robot = running.read_robot(options("--robot", name, "--server", "x"))
        assert build_dataclass(SafetyLimits, robot["safety"], "safety").linear_speed <= 1.0
        assert build_dataclass(LoopSettings, robot["loop"], "loop").timeouts.overrun <= 0.3
    given = ("--robot", str(ROBOTS / "sim.yaml"), "--server", "x", "--set", "safety.linear_speed=0.2")
    robot = running.read_robot(options(*given, "--blend", "latest", "--smooth", "--plan-rate", "4"))
    assert robot["loop"]["blend"] == "latest" and robot["loop"]["smooth"] == 3 and robot["loop"]["plan_rate"] == 4
    assert robot["safety"]["linear_speed"] == 0.2
    for given, match in (
        (("--set", "safe.speed=1"), "sections"),
        (("--set", "safety.linear_sped=1"), "safety.linear_sped"),
        (("--episode-seconds", "0"), "episode_seconds: 0.0, expected a finite number above 0"),
        (("--plan-rate", "0"), "plan_rate: 0.0"),
    ):
        with pytest.raises(ValueError, match=match):
            running.start(options("--server", "x", *given))


def test_a_checkpoint_runs_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(running, "start_server_process", lambda *given: started.append(given) or (None, "ws://x:1"))
    monkeypatch.setattr(running, "stop_server_process", started.append)
    monkeypatch.setattr(running, "RemotePlanner", Mock())
    with ExitStack() as stack:
        running._planner(options("--checkpoint", "c", "--steps", "16", "--device", "cpu"), stack)
    assert started == [(Path("c"), ["--sampler", "ancestral16", "--device", "cpu"]), None]
    with pytest.raises(ValueError, match="give them to eval_real.py serve"):
        running._planner(options("--server", "x", "--sampler", "ddim10"), ExitStack())


def test_a_confirmation_is_for_one_configuration_and_one_policy(tmp_path: Path) -> None:
    def digest(*given: str, **policy: object) -> str:
        robot = running.read_robot(options("--server", "x", *given))
        return dry_run.digest(robot, dataclasses.replace(describe(), **policy))

    name = digest()
    dry_run.confirm(tmp_path, name, {})
    dry_run.require_confirmation(tmp_path, name, "command")
    assert digest("--episode-seconds", "9", "--auto-resume") == name
    for other in (digest("--set", "safety.linear_speed=0.9"), digest(name="b"), digest(fingerprint="other files")):
        assert other != name
        with pytest.raises(ValueError, match="(?s)dry run.*type this"):
            dry_run.require_confirmation(tmp_path, other, "type this")


def test_a_rehearsal_sends_nothing_and_shows_what_it_would_send(tmp_path: Path, monkeypatch) -> None:
    made, looked = bench(), threading.Event()
    monkeypatch.setattr(observer, "POLL", 0.0005)

    def rehearse() -> list[dry_run.Rehearsal]:
        camera = FakeCamera(made.time)
        latest = camera.latest
        made.planner.where = lambda: (HOME, latest().time)
        camera.latest = lambda: (looked.set(), latest())[1]

        def sleep(seconds: float) -> None:
            made.time.sleep(seconds)
            looked.clear()
            looked.wait(WAIT)  # the camera is looked at by a thread of its own

        setup = Setup(made.arm, (camera,))
        return dry_run.rehearse(setup, made.planner, made.limits, LoopSettings(), now=made.time, sleep=sleep)

    found = rehearse()
    assert len(found) == 3 and not made.arm.sent and not made.arm.calls
    for each in found:
        assert each.stop is None and len(each.poses) == 301  # 15 steps of 0.1 s at 200 Hz
    commands = [ArmCommand(tick / 200, pose, 0.0) for tick, pose in enumerate(found[0].poses)]
    assert not command_faults(commands, made.limits)
    assert "ticks clipped: none" in found[0].line(200.0)
    dry_run.write_report(tmp_path / "dry_run.json", found, 200.0)
    assert len(json.loads((tmp_path / "dry_run.json").read_text())["plans"][0]["poses"]) == 301
    made.planner.path = lambda time: HOME - 0.4 * np.outer([0, 0, 1, 0], [0, 0, 0, 1])
    assert re.search(r"clipped: .*step \d+.*table \d+", rehearse()[0].line(200.0))
    made.planner.spoil = lambda actions: actions * np.nan
    assert all("not finite" in each.stop for each in rehearse())


def test_signals_and_whatever_is_typed_become_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> Iterator[str]:
        yield "Hold\n"
        raise OSError(errno.EIO, "Input/output error")

    def requests(stdin: object, numbers: tuple[int, ...], expected: list[str]) -> None:
        monkeypatch.setattr(sys, "stdin", stdin)
        control = SimpleNamespace(requests=queue.SimpleQueue())
        with running._operated(control):
            assert [control.requests.get(timeout=WAIT) for _ in expected] == expected
            assert (signal.getsignal(signal.SIGHUP) is signal.SIG_IGN) == (signal.SIGHUP not in numbers)
            for number in numbers:
                os.kill(os.getpid(), number)
                assert control.requests.get(timeout=WAIT) == ("ctrl_c" if number == signal.SIGINT else "term")

    typed = io.TextIOWrapper(io.BytesIO(b"\xff\n\nquit\n"), "utf-8")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        requests(typed, (signal.SIGHUP, signal.SIGTERM, signal.SIGINT), ["\ufffd", "start", "quit", "gone"])
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup
        requests(lost(), (), ["hold", "gone"])
    finally:
        signal.signal(signal.SIGHUP, before)


class Program:
    """eval_real.py run, whose messages a test reads and to which it types."""

    def __init__(self, *given: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "eval_real.py"), "run", *given], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        self.output: list[str] = []
        self._reader = threading.Thread(target=lambda: self.output.extend(self.process.stdout), daemon=True)
        self._reader.start()

    def expect(self, pattern: str) -> None:
        until(lambda: re.search(pattern, "".join(self.output)) is not None or not self._reader.is_alive())
        assert re.search(pattern, "".join(self.output)), "".join(self.output)

    def types(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


@pytest.mark.skipif(find_spec("mujoco") is None, reason="MuJoCo is not installed: no simulated arm")
def test_from_the_dry_run_to_ctrl_c(tmp_path: Path) -> None:
    with policy_server() as port:
        given = ["--robot", "sim", "--server", f"ws://127.0.0.1:{port}", "--task", INSTRUCTIONS[0]]
        given += ["--confirmations", str(tmp_path / "confirmed"), "--set", f"setup.size=[{SIZE},{SIZE}]"]
        given += [f"loop.timeouts.{name}=60.0" for name in PATIENT]
        with pytest.raises(ValueError, match=r"(?s)no dry run .* was confirmed.*--dry-run"):
            running.start(options(*given))

        rehearsal = Program(*given, "--dry-run", "--record", str(tmp_path / "dry"))
        rehearsal.expect("plan 3: .* m/s")
        rehearsal.types("yes")
        assert rehearsal.process.wait(WAIT) == 0
        (report,) = (tmp_path / "dry").glob("*.dry_run.json")
        assert len(json.loads(report.read_text())["plans"]) == 3

        run = Program(*given, "--record", str(tmp_path / "run"))
        run.expect("ready. Enter starts")
        run.types("")
        run.expect("started: the arm moves")
        (records,) = (tmp_path / "run").glob(f"*.recording/{RECORDS}")
        until(lambda: records.read_bytes().count(b"\xa4plan") > 2)
        run.process.send_signal(signal.SIGINT)
        run.expect("STOP ctrl_c")
        run.expect("the arm holds")
        run.types("release")
        run.expect("released: the arm can be moved by hand")
        run.types("quit")
        assert run.process.wait(WAIT) == 130, "".join(run.output)
    (path,) = map(Path, archives(str(tmp_path / "run")))  # as a source of training data
    name = path.name.removesuffix(".zarr.zip")
    statistics = json.loads((tmp_path / "run" / f"{name}.statistics.json").read_text())
    assert [each["reason"] for each in statistics["stops"]] == ["ctrl_c"] and plans_of(statistics["counts"]) > 2
    recording = Recording.open(path)
    (began,), (stopped,) = ([e["time"] for e in recording.events if e["kind"] == kind] for kind in ("start", "stop"))
    assert began <= recording.row_time[0] < recording.row_time[-1] <= stopped < recording.arrays["state_time"][-1]
    times, poses = recording.arrays["command_time"], recording.arrays["command_pose"]
    assert len(times) > 10
    commands = [ArmCommand(time, pose, 0.0) for time, pose in zip(times, poses)]
    limits = build_dataclass(SafetyLimits, running.read_robot(options("--server", "x"))["safety"], "safety")
    assert not command_faults(commands, limits), command_faults(commands, limits)


def test_a_server_that_goes_away_and_comes_back() -> None:
    """With threads and the computer's own time."""
    arm, limits, problems = FakeArm(), SafetyLimits(**LIMITS), []
    settings = LoopSettings(timeouts=Timeouts(**PATIENT), auto_resume=True)
    with ExitStack() as stack:
        server = stack.enter_context(ExitStack())
        port = server.enter_context(policy_server())
        planner = RemotePlanner(f"ws://127.0.0.1:{port}", plan_seconds=WAIT)
        stack.callback(planner.close)
        control = Control(Setup(arm, (FakeCamera(size=SIZE),)), planner, limits, settings)
        control.planning.text = INSTRUCTIONS[0]

        def operate() -> None:
            try:
                until(lambda: control.planning.ready)
                planner.plan_seconds = settings.timeouts.plan
                control.requests.put("start")
                until(lambda: plans_of(control.statistics.counts) > 2)
                server.close()
                until(lambda: control.phase is Phase.HOLDING)
                sent = len(arm.sent)
                until(lambda: control.planning.waiting or control.planning.fault is not None)
                time.sleep(0.2)
                assert len(arm.sent) == sent, "it moved without a server"
                server.enter_context(policy_server(port))
                until(lambda: control.phase is Phase.RUNNING)
                plans = plans_of(control.statistics.counts)
                until(lambda: plans_of(control.statistics.counts) > plans + 2)
            except BaseException as error:
                problems.append(error)
            control.requests.put("quit")

        operator = threading.Thread(target=operate)
        operator.start()
        stop = control.run()
        operator.join()
    assert not problems, problems
    reasons = [each["reason"] for each in control.statistics.stops]
    assert reasons[0] in ("lost_server", "no_action") and stop.reason.title == "quit", reasons
    assert not command_faults(arm.sent, limits), command_faults(arm.sent, limits)
