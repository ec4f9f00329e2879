"""The far side of `vector.EnvProcesses`: one simulator, alone in its process.

Started as `python -c "...; main()" FD`, with FD one end of a pipe. Imports neither torch nor the caller's main module,
so a process starts in the time its simulator takes to import. It ends when the pipe closes, and therefore also when the
parent dies by whatever means.
"""

import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np

from unified_video_action.instantiate import instantiate

Observation = dict[str, np.ndarray]
EnvSource = Mapping[str, Any] | Callable[[], Any]  # a configuration with `_target_`, or an importable function


@dataclass(frozen=True)
class Step:
    """What one control step of a gymnasium environment returned."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, float]  # the scalar entries of `info`; booleans as 0 or 1
    task: str = ""  # which of several tasks the episode is, in an environment that has them


def build_env(source: EnvSource) -> Any:
    """Build the gymnasium environment that a configuration or a function describes."""
    return source() if callable(source) else instantiate(dict(source), gymnasium.Env, "task.env")


def _copy(observation: Mapping[str, Any]) -> Observation:
    return {name: np.array(value) for name, value in observation.items()}


def _scalars(info: Mapping[str, Any]) -> dict[str, float]:
    arrays = {name: np.asarray(value) for name, value in info.items()}
    return {name: float(value) for name, value in arrays.items() if value.ndim == 0 and value.dtype.kind in "biuf"}


def _reset(env: Any, seed: int) -> Observation:
    return _copy(env.reset(seed=seed)[0])


def _steps(env: Any, actions: np.ndarray) -> list[Step]:
    """Execute `actions` (n, D); stop early where the episode ends."""
    steps: list[Step] = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        ends = bool(terminated), bool(truncated)
        steps.append(Step(_copy(observation), float(reward), *ends, _scalars(info), info.get("task", "")))
        if terminated or truncated:
            break
    return steps


def _try(env: Any, request: tuple[np.ndarray, tuple[int, ...]]) -> np.ndarray:
    """States (n, F, K) after so many `steps` (F,) of each of the chunks (n, A, D); the episode stays as it is."""
    if not hasattr(env, "try_actions"):
        raise TypeError(f"{type(env).__name__} cannot try actions out: it has no method try_actions(chunks, steps)")
    return env.try_actions(*request)


def _hello(env: Any, _: None) -> None:
    """Answered once the environment is built."""


COMMANDS = {"hello": _hello, "reset": _reset, "steps": _steps, "try": _try}


def serve(connection: Connection) -> int:
    """Answer requests until the pipe closes; return the process's exit status."""
    env = None
    try:
        env = build_env(connection.recv())
        while (request := _receive(connection)) is not None:
            command, argument = request
            _send(connection, True, COMMANDS[command](env, argument))
    except Exception as error:  # whatever a simulator raises costs this process, not the run
        _send(connection, False, (f"{type(error).__name__}: {error}", traceback.format_exc()))
        return 1
    finally:
        if env is not None:
            env.close()
    return 0


def _receive(connection: Connection) -> tuple[str, Any] | None:
    """The next request; None once the parent has closed the pipe."""
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        return None


def _send(connection: Connection, succeeded: bool, answer: Any) -> None:
    with suppress(ConnectionError):  # the parent no longer listens; the next _receive sees the pipe closed
        connection.send((succeeded, answer))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    sys.exit(serve(Connection(int(sys.argv[1]))))
