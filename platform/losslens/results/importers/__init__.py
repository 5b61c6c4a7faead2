"""What others have measured -> rows of our tables. An importer reads and refuses; writing is the caller's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Unused:
    """A number that could not be taken over, and why."""

    task: str
    metric: str
    reason: str


@dataclass(frozen=True, slots=True)
class Imported:
    """Rows by table that one file gave, and what of it was left out."""

    file: Path
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    unused: list[Unused] = field(default_factory=list)

    def add(self, table: str, *rows: dict[str, Any]) -> None:
        """One or more rows of a table."""
        self.rows.setdefault(table, []).extend(rows)
