"""Serve a policy to robots and simulators, until Ctrl-C.

    --checkpoint DIR                       openpi's clients at port 8000, ZeroMQ at 8766, on this machine alone
    --checkpoint DIR --allow-umi-pickle    and umi-arx's client at port 8768
    --make-keys KEYS                       make keys for a server and one robot, and end
    --checkpoint DIR --host 0.0.0.0 --key-file KEYS/server/key --zmq-keys KEYS/server     for other machines

Beyond this machine every door asks for a key: the websocket for the header `Authorization: Api-Key KEY`, ZeroMQ for
CURVE keys (KEYS/robot goes to the robot). The websocket does not encrypt: use it in a network of your own, or through
an SSH tunnel. umi-arx's client knows no keys, so that door is open to this machine alone; on the
robot's machine, ssh -L 8766:127.0.0.1:8768 SERVER brings it to where that client looks.
GET /healthz answers OK, GET /status how the server does.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from unified_video_action.compat.umi_arx import frequency
from unified_video_action.real.planner import PolicyDescription
from unified_video_action.real.server import keys
from unified_video_action.real.server.core import Core
from unified_video_action.real.server.desk import Desk
from unified_video_action.real.server.listener import Listener, cannot_listen
from unified_video_action.real.server.websocket_door import WebsocketDoor
from unified_video_action.real.server.zmq_door import ZmqDoor

log = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
LOOK_SECONDS = 1.0  # between two looks whether all parts of the server are alive


class Part(Protocol):
    """Of the server."""

    alive: bool  # whether it answers


class Door(Part, Protocol):
    """Listens from `start` to `stop`."""

    port: int

    def start(self) -> None: ...

    def stop(self) -> None: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", type=Path, help="folder of a checkpoint")
    add("--weights", choices=("ema", "model"), default="ema", help="the averaged weights (default) or the last ones")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--sampler", help="kind and steps: ancestral100, ancestral16, ddim10, ... (default: the checkpoint's)")
    add("--precision", default="no", help="of matrix products: no (float32, default), bf16 or fp16")
    add("--task", metavar="TEXT", help="instruction for clients that send none")
    add("--smooth", action="store_true", help="average actions over three steps, as the published server does")
    add("--host", default=LOOPBACK, help=f"address to listen on (default: {LOOPBACK}, this machine alone)")
    add("--port", type=int, default=8000, help="of openpi's websocket (default: 8000); 0 takes a free one")
    add("--no-websocket", action="store_true", help="do not offer it")
    add("--zmq-port", type=int, default=8766, help="of ZeroMQ (default: 8766); 0 takes a free one")
    add("--no-zmq", action="store_true", help="do not offer it")
    add("--key-file", type=Path, help=f"file with the key that clients must give (default: ${keys.VARIABLE}, if set)")
    add("--zmq-keys", type=Path, metavar="FOLDER", help="CURVE keys of the server and its clients, see --make-keys")
    add("--make-keys", type=Path, metavar="FOLDER", help="make keys in a new folder, and end")
    add("--max-clients", type=int, default=1, help="at a time (default: 1); a further one is refused")
    add("--queue", action="store_true", help="let websocket clients wait for a place instead")
    add("--lease", type=float, default=60.0, help="seconds of silence after which another may have a place (ZeroMQ)")
    add("--query-steps", type=int, help="control steps between two queries of openpi's clients (default: as executed)")
    add("--allow-umi-pickle", action="store_true", help="offer umi-arx's protocol, whose pickles are read, never run")
    add("--umi-port", type=int, default=8768, help="of umi-arx's protocol (default: 8768); 0 takes a free one")
    add("--umi-client-yaml", type=Path, metavar="FILE", help="write the configuration that umi-arx's client reads")
    add("--ready-file", type=Path, metavar="FILE", help="JSON with ports and description, written when listening")
    add("--with-parent", action="store_true", help="end when standard input is closed: for a child process")


def start(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM. Main thread only.

    Returns:
        the exit status: 1 where a part of the server died.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: a mistake in the options, or in what they name.
    """
    if args.make_keys:
        keys.make_keys(args.make_keys)
        log.info("made %s; copy its folder %s to the robot", args.make_keys, keys.CLIENT)
        return 0
    if not args.checkpoint:
        raise ValueError("--checkpoint DIR is needed: what is to be served?")
    if args.checkpoint.is_file():
        raise ValueError(
            f"--checkpoint {args.checkpoint} is a file, expected a checkpoint's folder; scripts/convert_checkpoint.py "
            "makes one of a published file"
        )
    if not args.checkpoint.is_dir():
        raise FileNotFoundError(f"--checkpoint {args.checkpoint}: no such folder; a run has checkpoints/latest")
    access = Access.of(args)  # before time is spent on loading, as are the other options
    check(args, access)
    if args.ready_file:
        args.ready_file.unlink(missing_ok=True)
    from unified_video_action.real.server.loading import load_core

    try:
        with until_stopped(args.with_parent) as wait, ExitStack() as stack:
            core = stack.enter_context(load_core(args))
            ports, parts = {}, {"inference": core}
            for name, door in doors(core, args, access).items():
                door.start()
                stack.callback(door.stop)
                ports[name], parts[f"{name} door"] = door.port, door
                log.info("%s: port %d at %s", name, door.port, LOOPBACK if name == "umi" else access.address)
            if args.ready_file:
                write_ready(args.ready_file, ports, core.description)
            log.info("serving %s; Ctrl-C ends", core.description.name)
            died = wait(parts)
            if died is None:
                log.info("stopping")
            else:
                log.error("the %s died: the server ends; what is above in this log may say why", died)
                return 1
    except KeyboardInterrupt:  # before it served
        return 130
    return 0


def check(args: argparse.Namespace, access: Access) -> None:
    """Of the options what needs no checkpoint: numbers, ports, folders of files that will be written.

    Raises:
        ValueError: one makes no sense, or a port is taken. FileNotFoundError: a folder that is not there.
    """
    if not 0 < args.lease < float("inf"):
        raise ValueError(f"--lease {args.lease:g}: expected a number of seconds above 0")
    if args.query_steps is not None and args.query_steps < 1:
        raise ValueError(f"--query-steps {args.query_steps}: expected at least 1 control step")
    if args.max_clients < 1:
        raise ValueError(f"--max-clients {args.max_clients}: expected at least 1")
    for option, file in (("--umi-client-yaml", args.umi_client_yaml), ("--ready-file", args.ready_file)):
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"{option} {file}: no folder {file.absolute().parent}; make it first")
        if file is not None and file.is_dir():
            raise ValueError(f"{option} {file} is a folder, expected a file's name")
    umi = LOOPBACK if args.allow_umi_pickle else None
    for option, address, port in (
        ("--port", None if args.no_websocket else access.address, args.port),
        ("--zmq-port", None if args.no_zmq else access.address, args.zmq_port),
        ("--umi-port", umi, args.umi_port),
    ):
        if address is not None:
            try:
                Listener(address, port, 1).close()
            except (OSError, OverflowError) as error:
                raise ValueError(cannot_listen(address, port, option, error)) from error


@dataclass(frozen=True)
class Access:
    """Where the doors listen, and what they ask for."""

    address: str
    key: str | None
    curve: keys.ServerCurve | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Access:
        """Raises ValueError for a server that strangers could use, or that has no door."""
        address = keys.resolve(args.host)
        key = keys.read_key(args.key_file)
        curve = keys.ServerCurve(args.zmq_keys) if args.zmq_keys else None
        if args.no_websocket and args.no_zmq and not args.allow_umi_pickle:
            raise ValueError("--no-websocket --no-zmq: nothing is left to serve")
        if not keys.is_loopback(address):
            make = "make keys with --make-keys KEYS"
            if not args.no_websocket and key is None:
                raise ValueError(
                    f"--host {args.host} can be reached by other machines, and the websocket has no key: {make} and "
                    f"give --key-file KEYS/{keys.SERVER}/{keys.KEY} or ${keys.VARIABLE}, or close it by --no-websocket"
                )
            if not args.no_zmq and curve is None:
                raise ValueError(
                    f"--host {args.host} can be reached by other machines, and ZeroMQ has no keys: {make} and give "
                    f"--zmq-keys KEYS/{keys.SERVER}, or close it by --no-zmq"
                )
        if args.umi_client_yaml and not args.allow_umi_pickle:
            raise ValueError("--umi-client-yaml needs --allow-umi-pickle")
        return cls(address, key, curve)


def doors(core: Core, args: argparse.Namespace, access: Access) -> dict[str, Door]:
    """The doors that the options ask for, which do not listen yet.

    Raises:
        ValueError: one of them cannot be opened; then none is.
    """
    made: dict[str, Door] = {}
    try:
        if not args.no_zmq:
            desk = Desk(core, None if access.curve else access.key, args.lease)
            made["zmq"] = ZmqDoor(desk, access.address, args.zmq_port, "--zmq-port", access.curve)
        if not args.no_websocket:
            steps = args.query_steps or core.description.action_steps
            made["websocket"] = WebsocketDoor(core, access.address, args.port, access.key, args.queue, steps)
        if args.allow_umi_pickle:
            from unified_video_action.real.server.umi_desk import UmiDesk

            umi = UmiDesk(core)
            made["umi"] = ZmqDoor(umi, LOOPBACK, args.umi_port, "--umi-port")
            if core.description.step_seconds is not None:
                log.info("run umi-arx's client with %s", frequency(core.description.step_seconds))
            if args.umi_client_yaml:
                args.umi_client_yaml.write_text(umi.client_yaml())
                log.info("umi-arx's client reads %s", args.umi_client_yaml)
    except BaseException:
        for door in made.values():
            door.stop()
        raise
    return made


@contextmanager
def until_stopped(with_parent: bool) -> Iterator[Callable[[Mapping[str, Part]], str | None]]:
    """What waits for Ctrl-C or SIGTERM, or, for a child, for the end of its parent; or for that of one of the server's
    parts, whose name it returns. Main thread only."""
    bell, button = socket.socketpair()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if with_parent:
        threading.Thread(target=_watch_parent, name="parent", daemon=True).start()

    def wait(parts: Mapping[str, Part]) -> str | None:
        for number in before:
            signal.signal(number, lambda *_: button.send(b"!"))
        while not select.select([bell], [], [], LOOK_SECONDS)[0]:
            if died := [name for name, part in parts.items() if not part.alive]:
                return died[0]
        return None

    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        bell.close()
        button.close()


def _watch_parent() -> None:
    """Standard input is a pipe whose other end the parent holds: it ends when the parent does."""
    while os.read(0, 4096):
        log.debug("the parent says something")
    os.kill(os.getpid(), signal.SIGTERM)


def write_ready(file: Path, ports: dict[str, int], description: PolicyDescription) -> None:
    """Write at once, so that a reader sees all of it or nothing."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps({"ports": ports, "description": description.to_json()}))
    part.replace(file)
