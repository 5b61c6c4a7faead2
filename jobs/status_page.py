"""`losslens status --web`: what runs, as a page that follows it, for browsers on this machine."""

from __future__ import annotations

import math
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from jobs.status import headline, status
from losslens.errors import LosslensError, UserError
from losslens.report.live import live_page, live_studies, world_sizes
from losslens.report.payload import as_json
from losslens.results import Results
from losslens.training.journal import events

HOST = "127.0.0.1"
# What the page may fetch and run stands in the page.
_HEADERS = {"Content-Security-Policy": "frame-ancestors 'none'", "X-Content-Type-Options": "nosniff"}


class Watched:
    """The answers to what the page asks, as JSON. The studies are gathered again only when parts came or went."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self._lock = threading.Lock()  # two windows must not gather at once
        self._gathered: tuple[str, str] | None = None

    def state(self) -> str:
        """The cluster in a line, a row per run as `losslens status` prints it, world sizes over time, and a version of the rows."""
        runs = [{name: _finite(value) for name, value in row.items()} for row in status(self._results)]
        world = {row["run"]: world_sizes(events(self._results / "checkpoints" / row["run"])) for row in runs}
        now = datetime.now(UTC).isoformat()
        return as_json({"time": now, "headline": headline(self._results), "runs": runs, "world": world, "version": self._version()})

    def studies(self) -> str:
        """What the figures show: see `live_studies`."""
        with self._lock:
            version = self._version()
            if self._gathered is None or self._gathered[0] != version:
                there = (self._results / "parts").is_dir()
                self._gathered = version, as_json(live_studies(Results(self._results)) if there else [])
            return self._gathered[1]

    def _version(self) -> str:
        names = sorted(path.relative_to(self._results).as_posix() for path in (self._results / "parts").glob("*/*.parquet"))
        return f"{len(names)}-{hash(tuple(names)):x}"  # parts never change under their name


def _finite(value: Any) -> Any:
    """None for a loss that is not a number, which JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, pages: Mapping[str, tuple[str, Callable[[], str]]]) -> None:
        super().__init__((HOST, port), _Answer)
        self.pages = pages
        self.hosts = frozenset(f"{name}:{self.server_port}" for name in (HOST, "localhost"))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle of an answer is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Answer(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Answer with a page; errors that have a sentence are answered with it."""
        kind, make = self.server.pages.get(self.path, ("", str))
        if self.headers.get("Host") not in self.server.hosts:  # a name of elsewhere that leads here
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "this page is for this machine")
        elif not kind:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "no such page")
        else:
            try:
                self._send(HTTPStatus.OK, kind, make())
            except LosslensError as error:
                self._send(HTTPStatus.SERVICE_UNAVAILABLE, "application/json", as_json({"error": str(error)}))

    def _send(self, code: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        for name, value in (headers | _HEADERS).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a browser that asks every other second would fill the terminal."""


def status_server(results: Path, port: int) -> ThreadingHTTPServer:
    """The server, listening and not yet answering; port 0 takes one that is free.

    Raises:
        UserError: there are no results here, or the port is taken.
    """
    watched = Watched(results)
    watched.state()
    text = live_page()
    pages = {
        "/": ("text/html", lambda: text),
        "/state": ("application/json", watched.state),
        "/studies": ("application/json", watched.studies),
    }
    try:
        return _Server(port, pages)
    except (OSError, OverflowError) as error:
        raise UserError(f"{HOST}:{port} cannot be listened to: {error}", "choose another --port") from error


def serve_status(results: Path, port: int, open_: bool) -> None:
    """Serve the page until Ctrl-C or SIGTERM; `open_` shows it in the browser. Errors as for `status_server`."""
    with status_server(results, port) as server:
        url = f"http://{HOST}:{server.server_port}/"
        print(f"{url} shows {results}; Ctrl-C ends it", file=sys.stderr, flush=True)
        if open_:
            webbrowser.open(url)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
