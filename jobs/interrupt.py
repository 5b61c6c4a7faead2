"""Ctrl-C and SIGTERM that always end the command.

Python raises KeyboardInterrupt wherever the main thread happens to be, and where that is a destructor or a callback of C
code it is printed and dropped: the study then goes on as if nothing had been asked. Everything that matters is in files
that appear whole, so a process that was asked to end may end at any moment. SIGTERM comes from schedulers, which wait a while
before they kill: runs in training save a state in that time (`jobs.training.Training.save`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from jobs.failures import ToldToEnd, explain

GRACE_S = 10.0  # for the way out through `finally` blocks: the terminal's cursor, locks, engines
SAVING_S = 15.0  # after SIGTERM, before that: for runs to save; Kubernetes kills after 30 seconds


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the block the first SIGINT raises KeyboardInterrupt, SIGTERM `ToldToEnd`; should that get lost, the process ends
    `GRACE_S` later, after SIGTERM another `SAVING_S`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _interrupted), signal.signal(signal.SIGTERM, _told_to_end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def leave(exit_code: int) -> None:
    """End the process at once, with what was printed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    _leave_after(GRACE_S, KeyboardInterrupt())


def _told_to_end(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the saving that the first began
    _leave_after(SAVING_S + GRACE_S, ToldToEnd())


def _leave_after(seconds: float, why: KeyboardInterrupt) -> None:
    late = threading.Timer(seconds, _say_and_leave, (why,))
    late.daemon = True
    late.start()
    raise why


def _say_and_leave(why: KeyboardInterrupt) -> None:
    failure = explain(why)
    assert failure is not None
    failure.print()
    leave(failure.exit_code)
