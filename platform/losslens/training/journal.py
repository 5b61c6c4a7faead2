"""What a run's worker and its controller tell the outside: small files in the run's directory, written by one, read by many.

`progress.json` (rank 0) and `workers.json` (the controller) hold the present state; `journal.jsonl` what happened when, one
line an event, from which recovery times are measured. They are for people and decisions: losing one loses no training,
so a disk that takes none of them stops nothing here.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

JOURNAL = "journal.jsonl"


def note(home: Path, event: str, **details: Any) -> None:
    """Append an event with the time in seconds since the epoch. One short write, so lines of two writers do not mix."""
    line = json.dumps({"time": time.time(), "event": event, **details}) + "\n"
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
        with (home / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(line)


def events(home: Path) -> list[dict[str, Any]]:
    """Every event so far, oldest first. A line that is just being written, or was spoilt by a kill, is not one."""
    file = home / JOURNAL
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return [event for line in lines if (event := _read(line))]


def _read(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def replace(file: Path, state: dict[str, Any]) -> None:
    """Put a new state in the place of the old; readers see one or the other. Not synchronised to disk: the next is soon."""
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(state), encoding="utf-8")
        temporary.replace(file)


def state(file: Path) -> dict[str, Any]:
    """The state in a file; empty where there is none or it cannot be read at this moment."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
