"""Simulators in processes of their own, stepped by whole action chunks.

Every process is started as a new one, never forked: this one may hold CUDA or EGL contexts. When a simulator raises, is
killed, segfaults or hangs, the caller gets a `Crash` in place of its answer, and the next reset starts another. A
process imports neither torch nor the caller's main module. It ends when its pipe closes, so also when the parent dies.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import gymnasium
import numpy as np

from unified_video_action.instantiate import instantiate

log = logging.getLogger(__name__)

WORKER = "from unified_video_action.env_runner.simulators import main; main()"
CLOSE_TIMEOUT_S = 3.0  # what a simulator gets to close itself before it is killed

Observation = dict[str, np.ndarray]
EnvSource = Mapping[str, Any] | Callable[[], Any]  # a configuration with `_target_`, or an importable function


@dataclass(frozen=True)
class Step:
    """What one control step of a gymnasium environment returned."""

    observation: Observation
    ended: bool  # terminated or truncated
    info: dict[str, float]  # the scalar entries of `info`; booleans as 0 or 1
    task: str = ""  # the episode's task, in an environment that has several


@dataclass(frozen=True)
class Crash:
    """Why an environment process was lost."""

    reason: str


def build_env(source: EnvSource) -> Any:
    """Build the gymnasium environment that a configuration or a function describes."""
    return source() if callable(source) else instantiate(dict(source), gymnasium.Env, "task.env")


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
        self._source = dict(source) if isinstance(source, Mapping) else source
        self._timeout_s = timeout_s
        self._processes: list[_EnvProcess | None] = [None] * n_envs
        try:
            for answer in self._ask({slot: ("start", None) for slot in range(n_envs)}).values():
                if isinstance(answer, Crash):
                    raise ValueError(f"task.env: the simulator could not be started: {answer.reason}")
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._processes)

    def __enter__(self) -> EnvProcesses:
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
        """States that chunks (n, A, D) would lead to in each slot; the episodes stay as they are.

        Args:
            steps: (F,) actions executed before a state is read.

        Returns:
            slot -> states (n, F, K), as the task's auxiliary targets.

        Raises:
            RuntimeError: an environment crashed, or has no method `try_actions`.
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
        """Send every request, then collect the answers as they come; returned in the order of `requests`."""
        for slot in requests:
            if self._processes[slot] is None:
                self._processes[slot] = _EnvProcess(self._source)
        waiting = {self._processes[slot].connection: slot for slot in requests}
        for connection, slot in waiting.items():
            _send(connection, requests[slot])  # where it died since its last answer, receive() finds out how
        answers: dict[int, Any] = {}
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
                break
        for slot, answer in answers.items():
            if isinstance(answer, Crash):
                self._processes[slot] = None
        return {slot: answers[slot] for slot in requests}


class _EnvProcess:
    """One worker process and this side of its pipe."""

    def __init__(self, source: EnvSource) -> None:
        self.connection, theirs = Pipe()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "OMP_NUM_THREADS": "1",  # the parallelism is in the number of processes
            "OPENCV_FOR_THREADS_NUM": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,  # the terminal's Ctrl-C reaches the parent only
        )
        theirs.close()
        self.connection.send(source)

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
        how = f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        return Crash(f"environment process ended by {how}")


def main() -> None:
    """The worker process: answer requests from the pipe whose descriptor is the first argument, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    connection, env, failed = Connection(int(sys.argv[1])), None, False
    requests = _received(connection)
    try:
        env = build_env(next(requests))
        for command, argument in requests:
            _send(connection, (True, COMMANDS[command](env, argument)))
    except Exception as error:  # whatever a simulator raises costs this process, not the run
        failed = True
        _send(connection, (False, (f"{type(error).__name__}: {error}", traceback.format_exc())))
    finally:
        if env is not None:
            env.close()
    sys.exit(failed)


def _received(connection: Connection) -> Iterator[Any]:
    """What arrives until the other side closes the pipe."""
    with suppress(EOFError, ConnectionError):
        while True:
            yield connection.recv()


def _send(connection: Connection, message: Any) -> None:
    with suppress(ConnectionError):  # the other side no longer listens
        connection.send(message)


def _copy(observation: Mapping[str, Any]) -> Observation:
    return {name: np.array(value) for name, value in observation.items()}


def _steps(env: Any, actions: np.ndarray) -> list[Step]:
    """Execute `actions` (n, D); stop early where the episode ends."""
    steps: list[Step] = []
    for action in actions:
        observation, _, terminated, truncated, info = env.step(action)
        arrays = {name: np.asarray(value) for name, value in info.items()}
        scalars = {
            name: float(value) for name, value in arrays.items() if not value.ndim and value.dtype.kind in "biuf"
        }
        steps.append(Step(_copy(observation), bool(terminated or truncated), scalars, info.get("task", "")))
        if steps[-1].ended:
            break
    return steps


def _try(env: Any, request: tuple[np.ndarray, tuple[int, ...]]) -> np.ndarray:
    """States (n, F, K) after so many `steps` (F,) of each of the chunks (n, A, D)."""
    if not hasattr(env, "try_actions"):
        raise TypeError(f"{type(env).__name__} cannot try actions out: it has no method try_actions(chunks, steps)")
    return env.try_actions(*request)


COMMANDS: dict[str, Callable[[Any, Any], Any]] = {
    "start": lambda env, _: None,  # answered once the environment is built
    "reset": lambda env, seed: _copy(env.reset(seed=seed)[0]),
    "steps": _steps,
    "try": _try,
}
