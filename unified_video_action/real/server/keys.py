"""Who may talk to a server: one key for its websocket, a pair of CURVE keys for each machine that uses ZeroMQ."""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

VARIABLE = "UVA_SERVER_KEY"
SHORTEST = 16  # characters of a key
SERVER, CLIENT, CLIENTS, KEY = "server", "robot", "clients", "key"  # names of folders and files of `make_keys`


def resolve(host: str) -> str:
    """The address of a host's name. Raises ValueError for a name that has none."""
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise ValueError(f"--host {host}: {error.strerror}") from error


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    return ipaddress.ip_address(address).is_loopback


def read_key(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The key in a file or, without one, in the environment; None where neither is given.

    Raises:
        FileNotFoundError: no such file. ValueError: a key that could be guessed.
    """
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"--key-file {file}: no such file; --make-keys FOLDER makes one")
    key = file.read_text().strip() if file is not None else environment.get(VARIABLE, "").strip()
    place = f"--key-file {file}" if file is not None else f"${VARIABLE}"
    if not key and file is None:
        return None
    if len(key) < SHORTEST or not key.isascii() or not key.isprintable():
        raise ValueError(f"{place}: a key has at least {SHORTEST} printable ASCII characters; --make-keys makes one")
    return key


def same(given: str, key: str) -> bool:
    """Compare in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), key.encode())


def make_keys(folder: Path) -> None:
    """Write keys for a server and one robot: `folder`/server stays on the server, `folder`/robot goes to the robot.

    Raises:
        FileExistsError: there are keys already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"--make-keys {folder}: exists already; remove it, or choose another folder")
    server, robot = folder / SERVER, folder / CLIENT
    for each in (server / CLIENTS, robot):
        each.mkdir(parents=True)
    folder.chmod(0o700)
    public, _ = zmq.auth.create_certificates(server, SERVER)
    Path(public).rename(robot / f"{SERVER}.key")
    public, _ = zmq.auth.create_certificates(robot, CLIENT)
    Path(public).rename(server / CLIENTS / f"{CLIENT}.key")
    key = secrets.token_urlsafe(32)
    for file in (server / KEY, robot / KEY):
        file.write_text(key + "\n")
    for file in (server / f"{SERVER}.key_secret", robot / f"{CLIENT}.key_secret", server / KEY, robot / KEY):
        file.chmod(0o600)


class ServerCurve:
    """A server's secret key and the clients it knows: FOLDER/server.key_secret and FOLDER/clients/*.key.

    Raises:
        ValueError: they are not there.
    """

    def __init__(self, folder: Path) -> None:
        self.public, self.secret = _read(folder / f"{SERVER}.key_secret", "--zmq-keys")
        self.clients = folder / CLIENTS
        if not any(self.clients.glob("*.key")):
            raise ValueError(f"--zmq-keys {folder}: no client is known; put the .key files of clients into {CLIENTS}/")

    def guard(self, context: zmq.Context) -> ThreadAuthenticator:
        """Start checking every connection of a context; end it with `stop()`."""
        guard = ThreadAuthenticator(context)
        guard.start()
        guard.configure_curve(domain="*", location=self.clients)
        return guard

    def secure(self, server: zmq.Socket) -> None:
        server.curve_secretkey, server.curve_publickey, server.curve_server = self.secret, self.public, True


class ClientCurve:
    """A client's secret key and its server's public one: FOLDER/robot.key_secret and FOLDER/server.key.

    Raises:
        ValueError: they are not there.
    """

    def __init__(self, folder: Path) -> None:
        self.public, self.secret = _read(folder / f"{CLIENT}.key_secret", "keys")
        self.server, _ = _read(folder / f"{SERVER}.key", "keys", secret=False)

    def secure(self, client: zmq.Socket) -> None:
        client.curve_secretkey, client.curve_publickey, client.curve_serverkey = self.secret, self.public, self.server


def _read(file: Path, option: str, secret: bool = True) -> tuple[bytes, bytes | None]:
    """(public, secret) key of a file."""
    try:
        public, hidden = zmq.auth.load_certificate(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} {file.parent}: {file.name} is missing or damaged; --make-keys makes it") from error
    if secret and hidden is None:
        raise ValueError(f"{option} {file.parent}: {file.name} holds no secret key")
    return public, hidden
