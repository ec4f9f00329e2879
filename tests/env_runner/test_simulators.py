"""Environment processes: they answer in order, are lost one at a time, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.env_runner import toy
from unified_video_action.env_runner.simulators import Crash, EnvProcesses

CHUNK = np.full((8, 1), 0.01, np.float32)


def pids(envs: EnvProcesses) -> list[int]:
    return [process.process.pid for process in envs._processes if process is not None]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"


def test_a_lost_process_is_named_and_replaced():
    with EnvProcesses(toy.ToyEnv, 4) as envs:
        before = pids(envs)
        envs.reset(dict(enumerate((toy.EXITS, toy.RAISES, toy.SEGFAULTS, 5))))
        answers = envs.step(dict.fromkeys(range(4), CHUNK))
        assert answers[0] == Crash("environment process ended by exit status 3")
        assert answers[1] == Crash("ArithmeticError: the table fell over")
        assert answers[2] == Crash("environment process ended by signal SIGSEGV")
        assert len(answers[3]) == 8
        assert "image" in envs.reset({0: 7})[0] and len(envs.step({0: CHUNK})[0]) == 8
        assert pids(envs)[0] != before[0] and pids(envs)[-1] == before[3]
        envs.reset({0: toy.HANGS, 3: 5})
        os.kill(pids(envs)[-1], signal.SIGKILL)
        time.sleep(0.1)
        pid, envs._timeout_s = pids(envs)[0], 1.0
        answers = envs.step({0: CHUNK, 3: CHUNK})
        assert answers[0] == Crash("environment process hung: no answer in 1 s, killed") and not alive(pid)
        assert answers[3] == Crash("environment process ended by signal SIGKILL")


def test_an_environment_that_cannot_be_built_says_why():
    with pytest.raises(ValueError, match="task.env: the simulator could not be started: FileNotFoundError: scene.xml"):
        EnvProcesses(toy.BrokenEnv, 1)
    with pytest.raises(ValueError, match="os.system.*is refused"):
        EnvProcesses({"_target_": "os.system", "command": "true"}, 1)


PARENT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started without it
from tests.env_runner import toy
from unified_video_action.env_runner.simulators import EnvProcesses
with EnvProcesses(toy.ToyEnv, 2) as envs:
    sys.stdout.write(" ".join(str(process.process.pid) for process in envs._processes) + chr(10))
    sys.stdout.flush()
    time.sleep(60)
"""


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_parent(blow: signal.Signals):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as parent:
        running = list(map(int, parent.stdout.readline().split()))
        assert len(running) == 2
        parent.send_signal(blow)
        parent.wait(10)
        errors = parent.stderr.read()
    deadline = time.monotonic() + 5
    while any(map(alive, running)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, running))
    assert ("KeyboardInterrupt" in errors) == (blow == signal.SIGINT)
    assert errors.count("Traceback") <= 1, "only the parent may speak"
