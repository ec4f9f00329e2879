"""Serve a policy to robots and simulators, until Ctrl-C.

    --checkpoint DIR                       openpi's websocket at port 8000, for this machine alone
    --checkpoint DIR --allow-umi-pickle    and umi-arx's client at port 8768
    --checkpoint DIR --host 0.0.0.0 --key-file KEY     for other machines

openpi's clients, eval_real.py run and `RemotePlanner` all speak openpi's websocket. Beyond this machine it asks for a
key, in the header `Authorization: Api-Key KEY`. It does not encrypt: use it in a network of your own, or through an SSH
tunnel. umi-arx's client knows no keys, so its port is open to this machine alone; on the robot's machine,
ssh -L 8766:127.0.0.1:8768 SERVER brings it to where that client looks.
GET /healthz answers OK, GET /status how the server does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

from unified_video_action.files import written
from unified_video_action.real.serving import openpi, umi_arx
from unified_video_action.real.serving.access import VARIABLE, Limiter, check_port, read_key, resolve
from unified_video_action.real.serving.core import Core
from unified_video_action.untrusted import local_checkpoint

log = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
LOOK_SECONDS = 1.0  # between two looks whether all parts of the server are alive
STOP_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder of a checkpoint")
    add("--weights", choices=("ema", "model"), default="ema", help="the averaged weights (default) or the last ones")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--sampler", help="kind and steps: ancestral100, ancestral16, ddim10, ... (default: the checkpoint's)")
    add("--precision", default="no", help="precision of matrix products: no (float32, default), bf16 or fp16")
    add("--task", metavar="TEXT", help="instruction for clients that send none")
    add("--smooth", action="store_true", help="average actions over three steps, as the published server does")
    add("--host", default=LOOPBACK, help=f"address to listen on (default: {LOOPBACK}, this machine alone)")
    add("--port", type=int, default=8000, help="port of openpi's websocket (default: 8000); 0 takes a free one")
    add("--key-file", type=Path, help=f"file with the key that clients must give (default: ${VARIABLE}, if set)")
    add("--max-clients", type=int, default=1, help="at a time (default: 1); a further one is refused")
    add("--queue", action="store_true", help="let further websocket clients wait instead")
    add("--query-steps", type=int, help="control steps between two queries of openpi's clients (default: as executed)")
    add("--allow-umi-pickle", action="store_true", help="offer umi-arx's protocol, whose pickles are read, never run")
    add("--umi-port", type=int, default=8768, help="port of umi-arx's protocol (default: 8768); 0 takes a free one")
    add("--umi-client-yaml", type=Path, metavar="FILE", help="write the configuration that umi-arx's client reads")
    add("--ready-file", type=Path, metavar="FILE", help="JSON with ports and description, written when listening")
    add("--with-parent", action="store_true", help="end when standard input is closed: for a child process")


def start(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM. Main thread only.

    Returns:
        the exit status: 1 where a part of the server died.

    Raises:
        ValueError, FileNotFoundError: a mistake in the options, or in what they name.
    """
    check(args)  # before time is spent on loading
    if args.ready_file:
        args.ready_file.unlink(missing_ok=True)
    from unified_video_action.real.serving.loading import load_core

    if args.with_parent:
        threading.Thread(target=_watch_parent, name="parent", daemon=True).start()
    try:
        with load_core(args) as core, PolicyServer(core, args) as server:
            if args.ready_file:
                with written(args.ready_file) as part:  # at once, so that a reader sees all of it or nothing
                    part.write_text(json.dumps({"ports": server.ports, "description": core.description.to_json()}))
            log.info("serving %s; Ctrl-C ends", core.description.name)
            return _watch(server)
    except KeyboardInterrupt:  # before it served
        return 130


def _watch(server: PolicyServer) -> int:
    """Wait for Ctrl-C, SIGTERM, or the end of a part of the server; returns the exit status."""
    before = {each: signal.signal(each, signal.default_int_handler) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not (died := server.died):
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        log.info("stopping")
        return 0
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    log.error("the %s died: the server ends; what is above in this log may say why", died)
    return 1


def check(args: argparse.Namespace) -> None:
    """The options' mistakes that need no checkpoint to be seen.

    Raises:
        ValueError: one makes no sense, a port is taken, or strangers could use the server. FileNotFoundError: a file
            or folder that is not there.
    """
    args.checkpoint = local_checkpoint(args.checkpoint, args.weights)
    if args.checkpoint.is_file():
        raise ValueError(
            f"--checkpoint {args.checkpoint} is a file, expected a checkpoint's folder; scripts/convert_checkpoint.py "
            "makes one of a published file"
        )
    if not args.checkpoint.is_dir():
        raise FileNotFoundError(f"--checkpoint {args.checkpoint}: no such folder; a run has checkpoints/latest")
    for option, count in (("--query-steps", args.query_steps), ("--max-clients", args.max_clients)):
        if count is not None and count < 1:
            raise ValueError(f"{option} {count}: expected at least 1")
    if args.umi_client_yaml and not args.allow_umi_pickle:
        raise ValueError("--umi-client-yaml needs --allow-umi-pickle")
    for option, file in (("--umi-client-yaml", args.umi_client_yaml), ("--ready-file", args.ready_file)):
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"{option} {file}: no folder {file.absolute().parent}; make it first")
        if file is not None and file.is_dir():
            raise ValueError(f"{option} {file} is a folder, expected a file's name")
    address = resolve(args.host)
    read_key(address, args.key_file)
    check_port(address, args.port, "--port")
    if args.allow_umi_pickle:
        check_port(LOOPBACK, args.umi_port, "--umi-port")


class PolicyServer:
    """A core's handlers, in an event loop in a thread of its own, from `with` to its end.

    Args:
        core: whose thread runs.
        args: the options of `eval_real.py serve`, which `check` found right.

    Raises:
        OSError: a port is taken.
    """

    def __init__(self, core: Core, args: argparse.Namespace) -> None:
        self.ports: dict[str, int] = {}
        self._core, self._died = core, ""
        address = resolve(args.host)
        key, limiter = read_key(address, args.key_file), Limiter()
        self._handlers: dict[str, AbstractAsyncContextManager] = {
            "websocket": openpi.listen(core, address, args.port, limiter, key, args.queue, args.query_steps)
        }
        if args.allow_umi_pickle:
            self._handlers["umi"] = umi_arx.listen(core, LOOPBACK, args.umi_port, limiter)
            if args.umi_client_yaml:
                args.umi_client_yaml.write_text(umi_arx.client_yaml(core.description))
                log.info("umi-arx's client reads %s", args.umi_client_yaml)
        self._thread = threading.Thread(target=self._run, name="handlers", daemon=True)
        self._ready: Future[None] = Future()

    def __enter__(self) -> PolicyServer:
        self._thread.start()
        self._ready.result()
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_SECONDS)

    @property
    def died(self) -> str:
        """The part of the server that answers no more; nothing where all do."""
        if not self._core.alive:
            return "inference"
        return self._died or ("" if self._thread.is_alive() else "event loop")

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            else:
                log.exception("the event loop ended")

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with AsyncExitStack() as stack:
            works: dict[asyncio.Future, str] = {}
            for name, handler in self._handlers.items():
                self.ports[name], work = await stack.enter_async_context(handler)
                works[asyncio.ensure_future(work)] = f"{name} handler"
                log.info("%s: port %d", name, self.ports[name])
            self._ready.set_result(None)
            stop = asyncio.ensure_future(self._stop.wait())
            done, rest = await asyncio.wait({stop, *works}, return_when=asyncio.FIRST_COMPLETED)
            self._died = ", ".join(works[task] for task in done - {stop})
            for task in rest:
                task.cancel()
            for failed in await asyncio.gather(*done - {stop}, return_exceptions=True):
                log.error("the %s failed", self._died, exc_info=failed)
            await asyncio.gather(*rest, return_exceptions=True)


def _watch_parent() -> None:
    """Standard input is a pipe whose other end the parent holds: it ends when the parent does."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """The server as a program of its own, as a robot's process starts it; `eval_real.py serve` for people."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s server: %(message)s")
    try:
        sys.exit(start(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"server: {error}")


if __name__ == "__main__":
    main()
