"""Ctrl-C that always ends the command.

Python raises KeyboardInterrupt wherever the main thread happens to be, and where that is a destructor or a callback of C
code it is printed and dropped: the study then goes on as if nothing had been asked. Everything that matters is in files
that appear whole, so a process that was asked to end may end at any moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from jobs.failures import explain

GRACE_S = 10.0  # for the way out through `finally` blocks: the terminal's cursor, locks, engines


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the block the first SIGINT raises KeyboardInterrupt and, should that get lost, ends the process `GRACE_S` later."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def leave(exit_code: int) -> None:
    """End the process at once, with what was printed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    late = threading.Timer(GRACE_S, _say_and_leave)
    late.daemon = True
    late.start()
    raise KeyboardInterrupt


def _say_and_leave() -> None:
    failure = explain(KeyboardInterrupt())
    assert failure is not None
    failure.print()
    leave(failure.exit_code)
