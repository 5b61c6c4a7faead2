"""One process that listens and scores: the web server in the main thread, the dispatcher in another, and how both end.

SIGTERM and SIGINT drain: no new work is taken, what is being scored ends or is queued again, questions are answered until
then. A second signal ends the wait.
"""

from __future__ import annotations

import socket
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from eval_service.http.dispatcher import Dispatcher
from losslens.errors import EnvironmentFailure, UserError

_BACKLOG = 1024
_ANSWERING_S = 5  # open connections get this long at the end


def listen(host: str, port: int) -> socket.socket:
    """A socket that is ours before anything else is started.

    Raises:
        UserError: the address is not one of this machine, or its port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port} cannot be listened to: {error}", "choose another --host or --port") from error


def run(app: FastAPI, dispatcher: Dispatcher, listener: socket.socket, drain_s: float) -> None:
    """Serve until drained.

    Raises:
        Exception: what ended the dispatcher, if it did not end because it was told to.
    """
    ended: list[BaseException] = []

    def work() -> None:
        try:
            dispatcher.run()
        except BaseException as error:  # raised again below, in the main thread
            ended.append(error)

    worker = threading.Thread(target=work, name="dispatcher", daemon=True)
    worker.start()
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False, timeout_graceful_shutdown=_ANSWERING_S
    )
    _Server(config, dispatcher, worker, drain_s).run(sockets=[listener])
    worker.join()
    if ended:
        raise ended[0]
    if not dispatcher.draining:
        raise EnvironmentFailure("the service ended without being asked to", "see the lines above, and start it again")


class _Server(uvicorn.Server):
    """Ends when the dispatcher has."""

    def __init__(self, config: uvicorn.Config, dispatcher: Dispatcher, worker: threading.Thread, drain_s: float) -> None:
        super().__init__(config)
        self._dispatcher, self._worker, self._drain_s = dispatcher, worker, drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: drain, and at the second one wait no more."""
        self._dispatcher.drain(0.0 if self._dispatcher.draining else self._drain_s)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        self.should_exit = self.should_exit or not self._worker.is_alive()
        return await super().on_tick(counter)
