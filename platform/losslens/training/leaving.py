"""A worker's ear for its controller: asked to save, or to save and leave. Set in the worker process from its main thread,
read by the thread that trains; reading is free, so it is done at every step.
"""

from __future__ import annotations

import time

_leave_until = 0.0  # seconds since the epoch; 0: not asked
_save = False


def ask(deadline: float) -> None:
    """Save a state, then hold still until the group is taken down, `deadline` (seconds since the epoch) passes or `cancel` comes."""
    global _leave_until
    _leave_until = deadline


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


def hold() -> None:
    """Wait for the end of this process, until cancelled or too late; then the request is forgotten."""
    while time.time() < _leave_until:
        time.sleep(0.05)
    cancel()
