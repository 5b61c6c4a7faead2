"""What others have measured -> rows of our tables. An importer reads and refuses; writing is the caller's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Unused:
    """Numbers that could not be taken over, and why."""

    task: str
    metric: str
    reason: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Imported:
    """Rows by table that a file, or a directory with so many `files`, gave, and what of it was left out."""

    file: Path
    rows: dict[str, Any] = field(default_factory=dict)  # lists of dicts, or Arrow tables
    unused: list[Unused] = field(default_factory=list)
    files: int = 1

    def add(self, table: str, *rows: dict[str, Any]) -> None:
        """One or more rows of a table."""
        self.rows.setdefault(table, []).extend(rows)
