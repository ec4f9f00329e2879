"""Simulators in processes of their own, stepped by whole action chunks.

The processes are started afresh (never forked from this one, which may hold CUDA or EGL contexts). When one raises, is
killed, segfaults or hangs, the caller receives a `Crash` in place of its answer, and the next reset starts another.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from unified_video_action.env_runner.worker import EnvSource, Observation, Step

log = logging.getLogger(__name__)

WORKER = "from unified_video_action.env_runner.worker import main; main()"
CLOSE_TIMEOUT_S = 3.0  # what a simulator gets to close itself before it is killed


@dataclass(frozen=True)
class Crash:
    """Why an environment process was lost."""

    reason: str


class _EnvProcess:
    """One worker process and this side of its pipe."""

    def __init__(self, source: EnvSource) -> None:
        self.connection, theirs = Pipe()
        descriptor = theirs.fileno()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "OMP_NUM_THREADS": "1",  # the parallelism is in the number of processes
            "OPENCV_FOR_THREADS_NUM": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER, str(descriptor)],
            stdin=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            env=environment,
            start_new_session=True,  # the terminal's Ctrl-C reaches the parent only
        )
        theirs.close()
        self.connection.send(dict(source) if isinstance(source, Mapping) else source)

    def receive(self) -> Any:
        """The answer that lies in the pipe, or a `Crash`."""
        try:
            succeeded, answer = self.connection.recv()
        except (EOFError, ConnectionError):
            return self.end(CLOSE_TIMEOUT_S)
        if succeeded:
            return answer
        reason, trace = answer
        log.warning("An environment process raised:\n%s", trace)
        self.end(CLOSE_TIMEOUT_S)
        return Crash(reason)

    def end(self, timeout_s: float = 0.0) -> Crash:
        """Close the pipe, give the process `timeout_s` to go by itself, then kill it."""
        self.connection.close()
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return Crash(f"environment process ended by {_exit_name(code)}")


class EnvProcesses:
    """`n_envs` environments, each in its own process, addressed by slot 0 .. n_envs - 1.

    Use as a context manager; leaving it ends every process. POSIX only.

    Args:
        source: environment configuration (a mapping with `_target_`), or an importable function that returns one.
        timeout_s: a process that takes longer over one request (a reset, a chunk) counts as hung and is killed.

    Raises:
        ValueError: the environment cannot be built.
    """

    def __init__(self, source: EnvSource, n_envs: int, timeout_s: float = 300.0) -> None:
        if n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {n_envs}")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, got {timeout_s}")
        self._source = source
        self._timeout_s = timeout_s
        self._processes: list[_EnvProcess | None] = [None] * n_envs
        try:
            for answer in self._ask({slot: ("hello", None) for slot in range(n_envs)}).values():
                if isinstance(answer, Crash):
                    raise ValueError(f"task.env: the simulator could not be started: {answer.reason}")
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._processes)

    def __enter__(self) -> "EnvProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self, seeds: Mapping[int, int]) -> dict[int, Observation | Crash]:
        """Start an episode in each slot of `seeds`; lost processes are restarted first."""
        return self._ask({slot: ("reset", int(seed)) for slot, seed in seeds.items()})

    def step(self, chunks: Mapping[int, np.ndarray]) -> dict[int, list[Step] | Crash]:
        """Execute a chunk (n, D) in each slot, all slots at once; a chunk stops where its episode ends."""
        return self._ask({slot: ("steps", np.asarray(chunk)) for slot, chunk in chunks.items()})

    def try_actions(self, chunks: Mapping[int, np.ndarray], steps: Sequence[int]) -> dict[int, np.ndarray]:
        """What would come of each of some chunks (n, A, D) in each slot, leaving the episodes as they are.

        Args:
            steps: (F,) actions executed before a state is read.

        Returns:
            slot -> states (n, F, K), as the task's auxiliary targets.

        Raises:
            RuntimeError: an environment crashed, or cannot try actions out.
        """
        answers = self._ask({slot: ("try", (np.asarray(own), tuple(steps))) for slot, own in chunks.items()})
        for slot, answer in answers.items():
            if isinstance(answer, Crash):
                raise RuntimeError(f"environment {slot} could not try actions out: {answer.reason}")
        return answers

    def close(self) -> None:
        """End all processes; those that do not go by themselves are killed."""
        running = [process for process in self._processes if process is not None]
        for process in running:
            process.connection.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for process in running:
            process.end(max(0.0, deadline - time.monotonic()))
        self._processes = [None] * len(self._processes)

    def _ask(self, requests: Mapping[int, tuple[str, Any]]) -> dict[int, Any]:
        """Send every request, then collect the answers as they come, in the order of `requests`."""
        answers: dict[int, Any] = {}
        waiting: dict[Connection, int] = {}
        for slot in requests:
            if self._processes[slot] is None:
                self._processes[slot] = _EnvProcess(self._source)
        for slot, request in requests.items():
            connection = self._processes[slot].connection
            try:
                connection.send(request)
            except ConnectionError:  # it died since its last answer; receive() finds out how
                log.debug("environment %d is gone", slot)
            waiting[connection] = slot
        deadline = time.monotonic() + self._timeout_s
        while waiting:
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            for connection in ready:
                slot = waiting.pop(connection)
                answers[slot] = self._processes[slot].receive()
            if not ready:
                for slot in waiting.values():
                    self._processes[slot].end()
                    answers[slot] = Crash(f"environment process hung: no answer in {self._timeout_s:g} s, killed")
                waiting.clear()
        for slot, answer in answers.items():
            if isinstance(answer, Crash):
                self._processes[slot] = None
        return {slot: answers[slot] for slot in requests}


def _exit_name(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    return f"signal {signal.Signals(-code).name}"
