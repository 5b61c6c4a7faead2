"""Notices that a cloud takes this machine back, from three sources, in one form.

A source is asked again and again, because no cloud calls: it returns a `Notice`, or None while there is none. It raises
OSError or ValueError when it cannot be asked or answers what it should not; the one who asks decides what that means.

    aws        the instance metadata service, version 2: two minutes before a spot instance is stopped or terminated
    gcp        the metadata server: 30 s before a spot VM is stopped, 60 s or more before a host that cannot migrate its VMs
    file:PATH  a file that appears, for anything else: empty, seconds from its writing on, or an ISO 8601 time
"""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from time import time

from losslens.errors import UserError

AWS, GCP = "http://169.254.169.254", "http://metadata.google.internal"
TIMEOUT_S = 2.0  # both services live on the machine's own host and answer in milliseconds
LONGEST_ANSWER = 4096  # bytes; every answer we expect is far shorter
TOKEN_S = 21_600  # 6 h, the longest life that AWS gives a token
GCP_PREEMPTION_S, GCP_MAINTENANCE_S = 30.0, 60.0


@dataclass(frozen=True, slots=True)
class Notice:
    """This machine goes away. `deadline` is in seconds since the epoch; None when nobody said when."""

    why: str
    deadline: float | None

    def remaining(self, now: float) -> int | None:
        """Whole seconds from `now` to the deadline, at least 1 however late the notice is read; None without a deadline."""
        return None if self.deadline is None else max(1, math.floor(self.deadline - now))


Source = Callable[[], Notice | None]


def source_named(name: str, endpoint: str | None = None) -> Source:
    """The source that `aws`, `gcp` or `file:PATH` names; `endpoint` replaces the address of a metadata service.

    Raises:
        UserError: there is no such source, or the endpoint does not fit it.
    """
    kind, _, path = name.partition(":")
    if endpoint is not None and (kind == "file" or not endpoint.startswith(("http://", "https://"))):
        raise UserError(f"{endpoint!r} is no endpoint of the source {name!r}", "give aws or gcp an http address, and file:PATH none")
    if name == "aws":
        return Aws((endpoint or AWS).rstrip("/"))
    if name == "gcp":
        return Gcp((endpoint or GCP).rstrip("/"))
    if kind == "file" and path:
        return NoticeFile(Path(path))
    raise UserError(f"there is no source {name!r}", "give aws, gcp or file:PATH")


def aws_notice(answer: str) -> Notice:
    """What `spot/instance-action` says: `{"action": "terminate", "time": "2026-09-18T08:22:00Z"}`.

    Raises:
        ValueError: it is not that; a time that cannot be read is no reason to ignore the rest.
    """
    said = json.loads(answer)
    if not isinstance(said, dict) or not isinstance(said.get("action"), str):
        raise ValueError(f"not an instance action: {answer[:80]!r}")
    try:
        deadline = seconds_of(str(said.get("time")))
    except ValueError:
        deadline = None
    return Notice(f"AWS is about to {said['action']} this spot instance", deadline)


def gcp_notice(preempted: str, maintenance: str, now: float) -> Notice | None:
    """What `instance/preempted` and `instance/maintenance-event` say together.

    Raises:
        ValueError: `preempted` is neither TRUE nor FALSE.
    """
    if preempted not in ("TRUE", "FALSE"):
        raise ValueError(f"neither TRUE nor FALSE: {preempted[:80]!r}")
    if preempted == "TRUE":
        return Notice("Google Cloud preempts this VM", now + GCP_PREEMPTION_S)
    if maintenance == "TERMINATE_ON_HOST_MAINTENANCE":  # not MIGRATE_...: the VM survives that
        return Notice("Google Cloud stops this VM for maintenance of its host", now + GCP_MAINTENANCE_S)
    return None


def file_notice(content: str, written: float) -> Notice:
    """What a file says that was written at `written`. Whatever else it holds, that it is there is the notice."""
    content = content.strip()
    try:
        after = float(content)
        deadline = written + after if math.isfinite(after) else None
    except ValueError:
        try:
            deadline = seconds_of(content)
        except ValueError:
            deadline = None
    return Notice("a notice was left on this machine", deadline)


def seconds_of(iso: str) -> float:
    """An ISO 8601 time, UTC unless it says otherwise, in seconds since the epoch.

    Raises:
        ValueError: it is none.
    """
    moment = datetime.fromisoformat(iso)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(slots=True)
class Aws:
    """Asks AWS. A token goes with every question; it lasts six hours and not beyond a stop of the instance."""

    endpoint: str
    token: str | None = field(default=None, init=False, repr=False)

    def __call__(self) -> Notice | None:
        """Ask once, a second time with a new token when the old one is refused."""
        answer = self._ask()
        if answer.status == HTTPStatus.UNAUTHORIZED:
            self.token = None
            answer = self._ask()
        return None if answer.status == HTTPStatus.NOT_FOUND else aws_notice(answer.text())

    def _ask(self) -> _Answer:
        if self.token is None:
            self.token = _ask(f"{self.endpoint}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}, "PUT").text()
        return _ask(f"{self.endpoint}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self.token})


@dataclass(frozen=True, slots=True)
class Gcp:
    """Asks Google Cloud."""

    endpoint: str

    def __call__(self) -> Notice | None:
        """Ask once for either kind of notice."""
        instance, flavor = f"{self.endpoint}/computeMetadata/v1/instance", {"Metadata-Flavor": "Google"}
        preempted = _ask(f"{instance}/preempted", flavor).text()
        return gcp_notice(preempted, _ask(f"{instance}/maintenance-event", flavor).said, time())


@dataclass(frozen=True, slots=True)
class NoticeFile:
    """Looks whether the file is there."""

    path: Path

    def __call__(self) -> Notice | None:
        """Look once."""
        try:
            return file_notice(self.path.read_text(encoding="utf-8", errors="replace"), self.path.stat().st_mtime)
        except FileNotFoundError:
            return None


@dataclass(frozen=True, slots=True)
class _Answer:
    url: str
    status: int
    said: str

    def text(self) -> str:
        if self.status != HTTPStatus.OK:
            raise ConnectionError(f"{self.url} answers with status {self.status}")
        return self.said


# Metadata services are reached directly: a proxy that the environment names would answer for another machine, if at all.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> _Answer:
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
            return _Answer(url, answer.status, answer.read(LONGEST_ANSWER).decode("utf-8", errors="replace").strip())
    except urllib.error.HTTPError as refusal:
        with refusal:
            return _Answer(url, refusal.code, "")
    except HTTPException as error:
        raise ValueError(f"{url} does not speak HTTP: {error!r}") from error
