"""A bounded cache of downloaded model revisions, shared by all processes of a user.

    CACHE/ORG--NAME/COMMIT         a whole revision, verified
    CACHE/ORG--NAME/.COMMIT        one that is being downloaded, or whose download was interrupted
    CACHE/ORG--NAME/COMMIT.lock    locked exclusively by who writes or removes it, shared by who reads it

Locks are the kernel's (flock), so a process that dies leaves none behind, and threads exclude each other as processes do.
The lock file holds the bytes the revision will have, which count from before its download begins.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from losslens.errors import EnvironmentFailure, UserError

_POLL_S = 0.2  # between two tries to get a lock or room that somebody else has


class Stopped(Exception):
    """Work on another thread was told to stop."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A revision in the cache, whole or not; `used` is when it was last read or written, seconds since 1970."""

    home: Path  # CACHE/ORG--NAME/COMMIT, which need not exist
    bytes: int
    used: float


def parse_size(text: str) -> int:
    """'50GB' -> 50 000 000 000 bytes; KiB, MiB, GiB and TiB are powers of 1024.

    Raises:
        UserError: not a size, or zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?", text.strip(), re.IGNORECASE | re.ASCII)
    if found is None:
        raise UserError(f"{text!r} is not a size", "give a number with KB, MB, GB or TB, as in 50GB")
    power = "KMGT".index(found[2].upper()) + 1 if found[2] else 0
    size = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if not size:
        raise UserError(f"a cache of {text} holds nothing", "give a number with KB, MB, GB or TB, as in 50GB")
    return size


def leaving_order(entries: Iterable[Entry], later: Sequence[Path]) -> list[Entry]:
    """Which entries go first when room is needed: those that this walk does not need any more, the longest unused first,
    then those it needs `later` (in that order), the last one first."""
    position = {home: index for index, home in enumerate(later)}
    return sorted(entries, key=lambda e: (e.home in position, -position.get(e.home, 0), e.used))


class Lease:
    """A revision that nobody removes until `release`."""

    def __init__(self, home: Path, lock: IO[str]) -> None:
        self.home, self._lock = home, lock

    def release(self) -> None:
        """It may go now."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.home)
        self._lock.close()


class Cache:
    """Directories of at most `limit` bytes together."""

    def __init__(self, root: Path, limit: int) -> None:
        self._root, self._limit = root, limit

    def home(self, repo: str, commit: str) -> Path:
        """Where a whole revision lies."""
        return self._root / repo.replace("/", "--") / commit

    def lend(
        self, home: Path, size: int, fill: Callable[[Path], None], stop: threading.Event, later: Sequence[Path] = ()
    ) -> tuple[Lease, bool]:
        """The revision of `size` bytes, and whether it was there before; otherwise `fill` writes it into a directory
        that keeps what an interrupted call left. Waits for room while the cache is full of revisions that are read.

        Raises:
            UserError: it is larger than the cache.
            EnvironmentFailure: the cache cannot be written.
            Stopped: `stop` was set.
        """
        if size > self._limit:
            sizes = f"{size / 1e9:,.2f} GB, the cache {self._limit / 1e9:,.2f} GB"
            raise UserError(f"a revision does not fit into the cache: it has {sizes}", "give a larger --cache-size")
        lock = self._opened(home)
        try:
            was_there = True
            while not self._shared(home, lock, stop):
                was_there = False
                _wait_for(lock, fcntl.LOCK_EX, stop)
                if not home.is_dir():
                    self._write(home, size, lock, fill, stop, later)
            return Lease(home, lock), was_there
        except BaseException:
            lock.close()
            raise

    def discard(self, lease: Lease) -> None:
        """Remove what turned out to be damaged."""
        lease.release()
        self._remove(lease.home)

    def entries(self) -> list[Entry]:
        """All that counts towards the limit."""
        homes = {path.with_name(path.name.lstrip(".").removesuffix(".lock")) for path in self._root.glob("*/*")}
        return [entry for home in sorted(homes) if (entry := _entry(home))]

    def _shared(self, home: Path, lock: IO[str], stop: threading.Event) -> bool:
        """Take the lock for reading; False when there is nothing to read: changing a lock's kind lets others in between."""
        _wait_for(lock, fcntl.LOCK_SH, stop)
        return home.is_dir()

    def _write(
        self, home: Path, size: int, lock: IO[str], fill: Callable[[Path], None], stop: threading.Event, later: Sequence[Path]
    ) -> None:
        unfinished = _unfinished(home)
        unfinished.mkdir(exist_ok=True)  # first: what has no directory does not count
        self._make_room(home, size, lock, stop, later)
        fill(unfinished)
        unfinished.rename(home)
        lock.truncate(0)

    def _make_room(self, home: Path, size: int, lock: IO[str], stop: threading.Event, later: Sequence[Path]) -> None:
        """Evict until the revision fits, and say in its lock file how much it will take."""
        while True:
            with (self._root / ".lock").open("a", encoding="utf-8") as whole:
                _wait_for(whole, fcntl.LOCK_EX, stop)
                others = [entry for entry in self.entries() if entry.home != home]
                excess = sum(entry.bytes for entry in others) + size - self._limit
                for entry in leaving_order(others, later):
                    if excess > 0 and self._remove(entry.home):
                        excess -= entry.bytes
                if excess <= 0:
                    lock.seek(0)
                    lock.truncate()
                    lock.write(str(size))
                    lock.flush()
                    return
            _pause(stop)

    def _remove(self, home: Path) -> bool:
        """Remove a revision unless somebody uses it."""
        with self._opened(home) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            with contextlib.suppress(FileNotFoundError):
                home.rename(_unfinished(home))  # at once, so that half of it never looks whole
            shutil.rmtree(_unfinished(home), ignore_errors=True)
            lock.truncate(0)
        return True

    def _opened(self, home: Path) -> IO[str]:
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            return home.with_name(f"{home.name}.lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise EnvironmentFailure(
                f"the cache {self._root} cannot be written: {error.strerror}", "choose another with --cache"
            ) from error


def _unfinished(home: Path) -> Path:
    return home.with_name(f".{home.name}")


def _entry(home: Path) -> Entry | None:
    """None for what has gone, whose lock file alone stays."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
        directory = home if home.is_dir() else _unfinished(home)
        on_disk = sum(file.stat().st_size for file in directory.iterdir())
        reserved = int(home.with_name(f"{home.name}.lock").read_text(encoding="utf-8") or 0) if directory != home else 0
        return Entry(home, max(reserved, on_disk), directory.stat().st_mtime)
    return None


def _wait_for(lock: IO[str], kind: int, stop: threading.Event) -> None:
    """Take a lock, or stop when told so."""
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise EnvironmentFailure(f"{lock.name} cannot be locked: {error.strerror}", "choose another disk with --cache") from error
        _pause(stop)


def _pause(stop: threading.Event) -> None:
    if stop.wait(_POLL_S):
        raise Stopped
