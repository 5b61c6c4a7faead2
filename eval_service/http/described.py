"""The rows that say what a submitted checkpoint is, written once."""

from __future__ import annotations

from pathlib import Path

from eval_service.targets import Found, unknown_rows
from losslens.results import Results


class Described:
    """Runs and checkpoints that a results directory has rows of. Threads may share it: equal rows written twice are one part."""

    def __init__(self, results: Path) -> None:
        self._results = Results(results)
        self._runs, self._checkpoints = (self._known(table, key) for table, key in (("runs", "run_id"), ("checkpoints", "checkpoint_id")))

    def add(self, found: Found) -> None:
        """Write the rows of a checkpoint that has none yet."""
        for table, rows in unknown_rows([found], self._runs, self._checkpoints):
            self._results.write(table, rows)
        self._runs.add(found.run["run_id"])
        self._checkpoints.add(found.checkpoint.checkpoint_id)

    def _known(self, table: str, key: str) -> set[str]:
        if not (self._results.root / "parts").is_dir():
            return set()
        return set(self._results.query(f"SELECT DISTINCT {key} FROM {table}").column(0).to_pylist())
