"""A worker's ear: asked to save, or to save and leave. Its controller asks in the worker process's main thread, and the thread
that trains reads at every step, which is free. SIGTERM asks to save and leave too, and then the process ends. A driver that was
told to end asks through a file in the run's directory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType

SAVE = "save"  # the file: there until rank 0 has saved

_leave_until = 0.0  # seconds since the epoch; 0: not asked
_save = False
_told_to_end = False
END_S = 60.0  # to reach the end of a step and save, after SIGTERM


def ask(deadline: float) -> None:
    """Save a state, then hold still until the group is taken down, `deadline` (seconds since the epoch) passes or `cancel` comes."""
    global _leave_until
    _leave_until = deadline


def listen() -> None:
    """Take SIGTERM for a request to save, leave and end the process; to be called in its main thread."""
    signal.signal(signal.SIGTERM, _end)


def _end(_number: int, _frame: FrameType | None) -> None:
    global _told_to_end
    _told_to_end = True
    ask(time.time() + END_S)


def ask_for_state() -> None:
    """Save a state and go on."""
    global _save
    _save = True


def cancel() -> None:
    """Go on: there will be no resize."""
    global _leave_until
    _leave_until = 0.0


def asked() -> bool:
    """Whether to leave."""
    return _leave_until > 0


def save_asked() -> bool:
    """Whether a state was asked for since the last call."""
    global _save
    was, _save = _save, False
    return was


def ask_for_state_from_afar(home: Path) -> None:
    """Have the run whose directory this is save a state and go on, from any process that sees the directory."""
    with contextlib.suppress(OSError):  # a disk that takes no file takes no state either
        (home / SAVE).touch()


def asked_from_afar(home: Path) -> bool:
    """Whether a state was asked for from afar and has not been answered."""
    return (home / SAVE).exists()


def answer_afar(home: Path) -> None:
    """A state has been saved."""
    (home / SAVE).unlink(missing_ok=True)


def hold() -> None:
    """Wait for the end of this process, until cancelled or too late; then the request is forgotten."""
    if _told_to_end:
        os._exit(128 + signal.SIGTERM)  # not sys.exit: this is not the process's main thread
    while time.time() < _leave_until:
        time.sleep(0.05)
    cancel()
