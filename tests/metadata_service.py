"""A stand-in for the metadata services of AWS and Google Cloud, over local HTTP."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

AWS_PATH = "/latest/meta-data/spot/instance-action"
PREEMPTED, MAINTENANCE = "/computeMetadata/v1/instance/preempted", "/computeMetadata/v1/instance/maintenance-event"


class Service(ThreadingHTTPServer):
    """A metadata service whose answers a test sets: (status, text) by path; AWS tokens are handed out and can be revoked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, str]] = {}
        self.tokens = self.asked = 0
        self.valid = ""
        self.delay_s = 0.0
        self.let_go = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_PUT(self) -> None:
        fine = self.path == "/latest/api/token" and 0 < int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21_600
        self.server.tokens += 1
        self.server.valid = f"token-{self.server.tokens}"
        self.reply(200 if fine else 400, self.server.valid)

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.let_go.wait(self.server.delay_s)
        aws = self.path.startswith("/latest")
        if aws and self.headers["X-aws-ec2-metadata-token"] != self.server.valid:
            self.reply(401, "")
        elif not aws and self.headers["Metadata-Flavor"] != "Google":
            self.reply(403, "")
        else:
            self.reply(*self.server.answers.get(self.path, (404, "")))

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def metadata_service() -> Iterator[Service]:
    """The service for the length of the block."""
    with Service() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.let_go.set()
        running.shutdown()
        thread.join()
