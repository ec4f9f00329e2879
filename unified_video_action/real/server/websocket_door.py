"""The websocket door: openpi's protocol, each connection in a thread of its own, plans in the inference thread.

A connection hears the metadata first, then an answer to each message. An error is a text, after which the connection is
closed with code 1011, as openpi's clients expect it; so is the answer to the first message of a client for which there
is no place. GET /healthz answers OK to anyone, GET /status tells how the server does. Connections that do not shake
hands end after a while, and sooner where there are many of them.
"""

from __future__ import annotations

import http
import json
import logging
import threading
import time

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.sync.server import ServerConnection, serve

from unified_video_action.real.server import openpi_desk
from unified_video_action.real.server.core import Core
from unified_video_action.real.server.errors import BAD_REQUEST, POLICY_FAILED, Refused
from unified_video_action.real.server.keys import same
from unified_video_action.real.server.listener import Listener, cannot_listen, share_of_files

log = logging.getLogger(__name__)
SCHEME = "Api-Key "
ERROR = 1011
TOO_BIG = 1009
HANDSHAKE_SECONDS = 10.0
GRACE_SECONDS = 0.5  # in which it is noticed that a client is gone, whose place the next one asks for


class WebsocketDoor:
    """Listens from `start` to `stop`.

    Args:
        address: to listen on. port: 0 takes a free one.
        key: that clients must give; None: none.
        queue: whether a client waits for a place where there is none.
        query_steps: see OpenpiDesk.

    Raises:
        ValueError: the port is taken.
    """

    def __init__(self, core: Core, address: str, port: int, key: str | None, queue: bool, query_steps: int) -> None:
        self._core, self._key, self._queue, self._query_steps = core, key, queue, query_steps
        share = share_of_files()
        self._most = share + core.max_clients  # connections that have shaken hands, most of which wait or are refused
        self._talking: set[ServerConnection] = set()
        try:
            self._listener = Listener(address, port, share)
        except (OSError, OverflowError) as error:
            raise ValueError(cannot_listen(address, port, "--port", error)) from error
        self._server = serve(
            self._talk,
            sock=self._listener,
            compression=None,
            max_size=openpi_desk.CLEAR * openpi_desk.most_bytes(core),
            max_queue=1,
            origins=[None],  # no page that a browser on this machine shows may talk to the robot
            process_request=self._admit,
            server_header=None,
            open_timeout=HANDSHAKE_SECONDS,
            logger=logging.getLogger(f"{__name__}.connections"),
        )
        self._server.logger.setLevel(logging.CRITICAL)  # of connections that are none; what matters is logged here
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="websocket door", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.ident is None:  # never started
            self._listener.close()
            return
        self._server.shutdown()
        self._thread.join()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """What is answered over HTTP; None lets the connection in."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not self._has_key(request.headers):
            self._core.monitor.refused(f"wrong_key: {_peer(connection)}")
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, f"send the header Authorization: {SCHEME}KEY\n")
        if request.path == "/status":
            answer = connection.respond(http.HTTPStatus.OK, json.dumps(self._core.health(), indent=1) + "\n")
            del answer.headers["Content-Type"]  # assignment adds one
            answer.headers["Content-Type"] = "application/json"
            return answer
        if len(self._talking) >= self._most:
            self._core.monitor.refused(f"busy: {_peer(connection)}")
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"more than {self._most} connections\n")
        return None

    def _has_key(self, headers: Headers) -> bool:
        if self._key is None:
            return True
        given = headers.get_all("Authorization")
        return len(given) == 1 and given[0].startswith(SCHEME) and same(given[0].removeprefix(SCHEME), self._key)

    def _talk(self, connection: ServerConnection) -> None:
        """One connection, from its opening to its end."""
        self._listener.shaken(connection.socket)
        self._talking.add(connection)
        try:
            self._serve(connection, f"openpi client {_peer(connection)}")
        except ConnectionClosed as error:
            if error.sent is not None and error.sent.code == TOO_BIG:
                log.warning("%s: closed: %s", _peer(connection), error.sent.reason)
                self._core.monitor.refused(f"{BAD_REQUEST}: {error.sent.reason}")
            log.debug("%s is gone", _peer(connection))
        finally:
            self._talking.discard(connection)

    def _serve(self, connection: ServerConnection, name: str) -> None:
        begun = time.monotonic()

        def wait() -> bool:
            """Whether to wait for a place: in the queue, or because one is about to become free."""
            here = connection.protocol.state is State.OPEN
            leaving = any(each.protocol.state is not State.OPEN for each in list(self._talking))
            return here and (self._queue or leaving or time.monotonic() - begun < GRACE_SECONDS)

        try:
            client = self._core.open(name, wait=wait)
        except Refused as error:
            log.warning("%s: %s", name, error.text)
            connection.send(openpi_desk.metadata(self._core, self._query_steps))
            connection.recv()  # these clients understand an error only as an answer
            self._end(connection, error)
            return
        try:
            connection.send(openpi_desk.metadata(self._core, self._query_steps))
            desk = openpi_desk.OpenpiDesk(self._core, client, self._query_steps)
            for message in connection:
                if isinstance(message, str):
                    raise Refused(BAD_REQUEST, "got a text, expected a binary message")
                connection.send(desk.answer(message))
        except Refused as error:
            log.warning("%s: %s", name, error.text)
            client.close()  # before the closing handshake, which may take seconds
            self._end(connection, error)
        except ConnectionClosed:
            raise
        except Exception as error:  # a mistake of ours ends this connection alone
            log.exception("%s: a message could not be handled", name)
            client.close()
            self._end(connection, Refused(POLICY_FAILED, f"the server failed ({type(error).__name__})"))
        finally:
            client.close()

    def _end(self, connection: ServerConnection, error: Refused) -> None:
        self._core.monitor.refused(str(error))
        connection.send(error.text)
        connection.close(ERROR, error.code)


def _peer(connection: ServerConnection) -> str:
    host, port, *_ = connection.remote_address
    return f"{host}:{port}"
