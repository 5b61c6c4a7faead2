"""Why a command failed, in one sentence with a remedy and an exit code: the only place that decides it."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from losslens.errors import LosslensError

INTERRUPTED = 130  # 128 + SIGINT, what shells expect
TOLD_TO_END = 143  # 128 + SIGTERM


class ToldToEnd(KeyboardInterrupt):
    """SIGTERM came. Like Ctrl-C it passes every `except Exception`."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What the user reads and the shell receives."""

    exit_code: int
    sentence: str
    remedy: str

    def print(self, error: BaseException | None = None) -> None:
        """Write the sentence and the remedy to stderr, after the traceback of `error` when one is given."""
        if error is not None:
            traceback.print_exception(error, file=sys.stderr)
        print(f"losslens: {self.sentence}", file=sys.stderr)
        if self.remedy:
            print(f"remedy: {self.remedy}", file=sys.stderr)


def explain(error: BaseException) -> Failure | None:
    """The failure behind `error`; None when it is a fault of ours, which deserves its traceback."""
    if isinstance(error, ToldToEnd):
        return Failure(TOLD_TO_END, "told to end; nothing that was saved is lost", "run the same command again to resume")
    if isinstance(error, KeyboardInterrupt):
        return Failure(INTERRUPTED, "interrupted; nothing that was saved is lost", "run the same command again to resume")
    for cause in _causes(error):
        if isinstance(cause, LosslensError):
            return Failure(cause.exit_code, cause.message, cause.remedy)
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            where = f" (writing {cause.filename})" if cause.filename else ""
            return Failure(3, f"the disk is full{where}", "free some space and run the same command again to resume")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what raised it. Ray keeps the exception of a remote task in `cause`, Python in `__cause__`."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        remote = getattr(current, "cause", None)
        current = remote if isinstance(remote, BaseException) else current.__cause__
