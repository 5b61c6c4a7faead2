"""The revisions of a Hub model as a target of `evaluate`: the next ones are downloaded while the present one is scored."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from eval_service.backlog import Assignment
from eval_service.cache import Cache, Lease
from eval_service.checkpoints import Checkpoint, shape_key
from eval_service.hub import Contents, Hub, Revision, verify
from eval_service.position import StepNames
from eval_service.targets import HUB, Found, Look, Refused, described, weights_sha256
from losslens.corpus.shards import joined_sha256
from losslens.errors import DataMismatch, EnvironmentFailure, LosslensError

logger = logging.getLogger(__name__)

AHEAD = 2  # revisions downloaded beyond the one that is scored
_GIVE_UP = 2  # revisions in a row that the Hub did not deliver


class Revisions:
    """`stored` tells, by checkpoint_id, path and weights_sha256 of the checkpoints that the results already know."""

    pause_s = 60.0  # the Hub is everybody's

    def __init__(
        self, hub: Hub, patterns: Sequence[str], names: StepNames, cache: Cache, stored: Callable[[], Mapping[str, tuple[str, str]]]
    ) -> None:
        self._hub, self._patterns, self._names, self._cache, self._stored = hub, patterns, names, cache, stored
        self._revisions: dict[str, Revision] = {}
        self._same: set[str] = set()  # commits of moved branches that have the weights which are stored

    def look(self) -> Look:
        """Ask the Hub which revisions there are; one request, unless branches have moved."""
        before = self._revisions
        self._revisions = {r.checkpoint_id: r for r in self._hub.revisions(self._patterns, self._names)}
        stored, refused = self._stored(), []
        for checkpoint_id, revision in self._revisions.items():
            path, weights = stored.get(checkpoint_id, ("", ""))
            if path.startswith(HUB) and path != _path(revision) and revision.commit not in self._same:
                try:
                    self._require_same(revision, weights)
                except LosslensError as error:
                    refused.append(Refused(checkpoint_id, error))
        gone = {refusal.what for refusal in refused}
        checkpoints = [Checkpoint(checkpoint_id, _path(r)) for checkpoint_id, r in self._revisions.items() if checkpoint_id not in gone]
        return Look(checkpoints, refused, news=self._revisions != before)

    def bring(self, work: Sequence[Assignment]) -> Generator[Found | Refused, None, None]:
        """In order of step. Nothing is removed from the cache while it waits here or is read."""
        wanted = {assignment.checkpoint.checkpoint_id for assignment in work}
        rest = deque(revision for checkpoint_id, revision in self._revisions.items() if checkpoint_id in wanted)
        stop, failed = threading.Event(), 0
        fetched: deque[tuple[Revision, Future[tuple[Found, Lease]]]] = deque()
        with ThreadPoolExecutor(1, "download") as thread:
            try:
                while rest or fetched:
                    while rest and len(fetched) <= AHEAD:
                        revision = rest.popleft()
                        later = [self._home(r) for r in rest]
                        fetched.append((revision, thread.submit(self._fetch, revision, later, stop)))
                    revision, future = fetched[0]
                    try:
                        found, lease = future.result()
                    except LosslensError as error:
                        fetched.popleft()
                        yield Refused(revision.checkpoint_id, error)
                        failed = failed + 1 if isinstance(error, EnvironmentFailure) else 0
                        if failed == _GIVE_UP:
                            logger.warning("%d further revisions of %s are not tried", len(fetched) + len(rest), revision.repo)
                            return
                        continue
                    fetched.popleft()
                    failed = 0
                    try:
                        yield found
                    finally:
                        lease.release()
            finally:
                stop.set()
                for _, future in fetched:
                    if not future.cancel():
                        future.add_done_callback(_let_go)

    def _fetch(self, revision: Revision, later: Sequence[Path], stop: threading.Event) -> tuple[Found, Lease]:
        """Have a revision in the cache, each of its files compared with the Hub's hash."""
        contents = self._hub.contents(revision, stop)
        fill = lambda into: self._hub.download(revision, contents, into, stop)  # noqa: E731
        lease, was_there = self._cache.lend(self._home(revision), contents.bytes, fill, stop, later)
        try:
            if was_there:
                for file in contents.files:
                    verify(lease.home / file.name, file, revision, stop)
            return self._found(revision, contents, lease.home), lease
        except DataMismatch:
            self._cache.discard(lease)
            raise
        except BaseException:
            lease.release()
            raise

    def _found(self, revision: Revision, contents: Contents, home: Path) -> Found:
        at = contents.modified or datetime.now(UTC)
        repo, position = revision.repo, revision.position
        run = {
            "run_id": revision.run_id,
            "size": repo.rpartition("/")[2],
            **described(home),
            "source": f"{HUB}{repo}",
            "source_url": self._hub.url,
            "licence": self._hub.licence,
        }
        row = {
            "checkpoint_id": revision.checkpoint_id,
            "run_id": revision.run_id,
            "step": position.step,
            "tokens": position.tokens,
            "path": _path(revision),
            "weights_sha256": _weights(contents) or weights_sha256(home),
            "created_at": contents.modified,
        }
        return Found(Checkpoint(revision.checkpoint_id, str(home), at.isoformat(), shape_key(home)), run, row, None)

    def _require_same(self, revision: Revision, stored: str) -> None:
        """A branch that has moved has the weights that were scored, as when only its README changed."""
        weights = _weights(self._hub.contents(revision))
        if weights != stored:
            raise DataMismatch(
                f"{revision.checkpoint_id} has other weights now than those that were scored",
                f"score {revision.commit} by --revisions, or score into other --results",
            )
        self._same.add(revision.commit)

    def _home(self, revision: Revision) -> Path:
        return self._cache.home(revision.repo, revision.commit)


def default_cache() -> Path:
    """Where revisions go unless the user says otherwise: the user's cache directory, by the XDG rules."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "losslens" / "hub"


def _let_go(future: Future[tuple[Found, Lease]]) -> None:
    """What was downloaded ahead and is not asked for any more."""
    if not future.cancelled() and future.exception() is None:
        future.result()[1].release()


def _path(revision: Revision) -> str:
    """Where the weights can be had again after they left the cache."""
    return f"{HUB}{revision.repo}@{revision.commit}"


def _weights(contents: Contents) -> str | None:
    """The hash of the weights as the Hub tells it; None where it does not."""
    hashes = [sha256 for sha256 in contents.weights if sha256 is not None]
    return joined_sha256(hashes) if len(hashes) == len(contents.weights) else None
