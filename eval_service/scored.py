"""Which (checkpoint, task, format, version) has been scored, kept up to date without reading any part twice.

Parts are immutable, so a process that asks again and again, as the HTTP front does, reads the new ones only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval_service.backlog import Done
from eval_service.questions import Asked
from losslens.errors import DataMismatch

_COLUMNS = ("checkpoint_id", "task", "format", "task_version", "n", "engine")


class ScoredSoFar:
    """Scores in a results directory; with an engine's short name, by that engine only."""

    def __init__(self, results: Path, engine: str = "auto") -> None:
        self._folder, self._engine = results / "parts" / "scores", "" if engine == "auto" else engine
        self._read: set[str] = set()
        self._items: dict[Done, int] = {}

    def refresh(self) -> None:
        """Read the parts that are new.

        Raises:
            DataMismatch: a part cannot be read.
        """
        names = os.listdir(self._folder) if self._folder.is_dir() else ()
        for name in names:
            if name.endswith(".parquet") and name not in self._read and not name.startswith("."):
                self._take(self._folder / name)
                self._read.add(name)

    @property
    def items(self) -> Mapping[Done, int]:
        """What has been scored, and on how many items."""
        return self._items

    def _take(self, part: Path) -> None:
        try:
            file = pq.ParquetFile(part)
            with file:
                for batch in file.iter_batches(columns=[name for name in _COLUMNS if name in file.schema_arrow.names]):
                    self._count(batch.to_pylist())
        except FileNotFoundError:  # merged into another part since the folder was listed; that one is read next
            return
        except (pa.ArrowException, OSError) as error:
            raise DataMismatch(f"{part} cannot be read: {error}", "restore it, or move it away to do without its rows") from error

    def _count(self, rows: Iterable[Any]) -> None:
        for row in rows:
            if (row.get("engine") or "").startswith(self._engine):
                done = (row["checkpoint_id"], Asked(row["task"], row.get("format")), row.get("task_version"))
                self._items[done] = max(self._items.get(done, 0), row.get("n") or 0)
