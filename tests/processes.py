"""Processes that need not import anything: a server that has, started once, forks them."""

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
LIMIT = 280  # seconds, within a test's own
fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(["tests.workspace.fakes", "tests.workspace.watched_run", "hydra"])


def start(function: Callable, *arguments, processes: int = 1, output: Path = Path(os.devnull), **options) -> list[int]:
    """Call a function of a module in processes that find each other as torchrun's do; their exit statuses.

    What they print is appended to `output`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on them
    if processes > 1:
        shared |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    children = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        child = fork.Process(target=_call, args=(function, arguments, options, shared | own, output))
        child.start()
        children.append(child)
    for child in children:
        child.join(LIMIT)
        child.kill()
        child.join()
    return [child.exitcode for child in children]


def train(*arguments: str, folder: Path) -> tuple[int, str]:
    """`python train.py` with these arguments in a folder: its exit status and what it printed."""
    output = folder / "output.txt"
    output.unlink(missing_ok=True)
    (status,) = start(run_script, ROOT / "train.py", *arguments, folder=folder, output=output)
    return status, output.read_text()


def run_script(script: Path, *arguments: str, folder: Path = ROOT) -> None:
    """What `python SCRIPT ...` in a folder does."""
    os.chdir(folder)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def _call(function: Callable, arguments: tuple, options: dict, environment: dict[str, str], output: Path) -> None:
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    with output.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    function(*arguments, **options)
