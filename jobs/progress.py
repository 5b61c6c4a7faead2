"""Progress of long work on stderr: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

EVERY_S = 15.0  # between two lines of one piece of work when nobody watches a terminal


class Board:
    """Named pieces of work, each with how much is done of how much, and a note."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        name, note = TextColumn("{task.description:<24}"), TextColumn("{task.fields[note]}")
        columns = (name, BarColumn(), MofNCompleteColumn(), note, TimeElapsedColumn())
        self._bars = Progress(*columns, console=self._console) if self._console.is_terminal else None
        self._ids: dict[str, TaskID] = {}
        self._printed: dict[str, tuple[float, float]] = {}
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars:
            self._bars.stop()

    def show(self, name: str, done: float, total: float, note: str = "") -> None:
        """Set the state of one piece of work; it appears when first shown."""
        if self._bars:
            if name not in self._ids:
                self._ids[name] = self._bars.add_task(name, total=total, note=note)
            self._bars.update(self._ids[name], completed=done, total=total, note=note)
        else:
            self._line(name, done, total, note)

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(f"[dim]{time.monotonic() - self._started:6.1f}s[/dim] {escape(text)}", highlight=False, soft_wrap=True)

    def _line(self, name: str, done: float, total: float, note: str) -> None:
        when, before = self._printed.get(name, (-EVERY_S, -1.0))
        now = time.monotonic()
        if done != before and (now - when >= EVERY_S or done >= total):
            self._printed[name] = (now, done)
            self.say(f"{name}: {done:,.0f} of {total:,.0f} {note}".rstrip())
