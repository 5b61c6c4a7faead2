"""`losslens serve` as a real process, and clients that go on asking while it is killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

REPO = Path(__file__).parents[1]
ENDED = ("done", "failed", "cancelled")


def fake_model(directory: Path) -> Path:
    """What the fake engine and the service take for a model: a config, and safetensors without a tensor."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"architectures": ["Fake"], "vocab_size": 256}), encoding="utf-8")
    header = json.dumps({"__metadata__": {"name": str(directory)}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return directory


class Service:
    """`losslens serve`, which may be ended and started again with the same settings."""

    def __init__(self, log: Path, environment: dict[str, str], *options: str | Path, token: str = "") -> None:
        self._log, self._options, self._token = log, options, token
        self._environment = environment | ({"LOSSLENS_TOKEN": token} if token else {})
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start it; `url` is right again when it listens."""
        self.starts += 1
        self._file = self._log.with_suffix(f".{self.starts}")
        command = [sys.executable, "-m", "jobs.cli", "serve", "--port", "0", *map(str, self._options)]
        with self._file.open("w") as output:
            self.process = subprocess.Popen(command, cwd=REPO, env=self._environment, stdout=output, stderr=output, start_new_session=True)
        self.url = ""
        self.wait_for(self._listens, 120)

    def log(self) -> str:
        """Everything since the last start."""
        return self._file.read_text(encoding="utf-8")

    def wait_for(self, condition: Callable[[], Any], seconds: float = 120) -> Any:
        """What the condition gives once it gives something."""
        until = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log()}"
            assert time.monotonic() < until, f"timed out:\n{self.log()}"
            time.sleep(0.02)
        return found

    def end(self, with_signal: int) -> int:
        """Send a signal to the service alone, as the out-of-memory killer or a supervisor would; its exit code."""
        self.process.send_signal(with_signal)
        return self.process.wait(timeout=120)

    def clear(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def scorers(self, *, at_work: bool = False) -> list[psutil.Process]:
        """Its scoring processes, by the titles that Ray gives them; those that score, if asked for."""
        found = []
        title = "ray::Scorer.score" if at_work else "ray::Scorer"
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any(title in word for word in process.cmdline()):
                        found.append(process)
        return found

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and answer. Raises OSError when the service is not there."""
        if not self.url:
            raise ConnectionRefusedError("it is being started")
        return ask(self.url + path, method, body, token=self._token, **headers)

    def submit(self, checkpoint: Path, tasks: Sequence[str], limit: int | None = None) -> str:
        """The id of a new evaluation."""
        status, answer = self.ask("POST", "/evaluations", {"checkpoint": str(checkpoint), "tasks": list(tasks), "limit": limit})
        assert status == 202, answer
        return str(answer["id"])

    def ended(self, evaluation_id: str) -> dict[str, Any]:
        """The evaluation, once it has ended."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.ask("GET", f"/evaluations/{evaluation_id}")[1]
            return found if found["state"] in ENDED else None

        shown: dict[str, Any] = self.wait_for(look)
        return shown

    def _listens(self) -> bool:
        found = re.search(r"listening on (http://\S+)", self.log())
        self.url = found[1] if found else ""
        with contextlib.suppress(OSError):
            return bool(found) and self.ask("GET", "/healthz")[0] == 200
        return False


def ask(url: str, method: str, body: Any = None, *, token: str = "", **headers: str) -> tuple[int, Any]:
    """One request; JSON is read, other text is not."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {}) | headers
    request = urllib.request.Request(url, data, given, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, _read(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, _read(refused)


def _read(answer: Any) -> Any:
    text = answer.read().decode()
    return json.loads(text) if answer.headers.get_content_type() == "application/json" else text
