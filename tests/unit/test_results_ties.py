"""Which of several rows of one key wins never depends on luck: on the order of rows, of files, or of threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from losslens.results import Results
from losslens.results.tables import TABLES

KEYS = {
    "runs": ("run_id",),
    "checkpoints": ("checkpoint_id",),
    "losses": ("checkpoint_id", "dataset", "unit"),
    "scores": ("checkpoint_id", "task", "task_version", "format", "shots", "metric", "engine"),
    "samples": ("checkpoint_id", "task", "task_version", "format", "shots", "item_id", "option", "engine"),
    "train_log": ("run_id", "attempt", "step"),
    "thresholds": ("study", "task", "format", "shots", "metric", "loss_dataset", "loss_unit"),
    "same_curve": (
        *("study", "task", "format", "shots", "metric", "loss_dataset", "loss_unit"),
        *("property", "level", "reference", "axis"),
    ),
    "forecasts": ("study", "task", "format", "shots", "metric", "loss_dataset", "loss_unit", "target"),
}


def value(kind: pa.DataType, which: int) -> Any:
    if pa.types.is_timestamp(kind):
        return pa.scalar(1_700_000_000_000_000 + which, kind).as_py()
    return {"string": "ab"[which], "int64": which, "double": which / 2, "bool": bool(which)}[str(kind)]


def answers(root: Path, table: str, parts: list[list[dict[str, Any]]], sql: str) -> list[dict[str, Any]]:
    (root / "parts" / table).mkdir(parents=True)
    for number, rows in enumerate(parts):
        pq.write_table(pa.Table.from_pylist(rows, schema=TABLES[table]), root / "parts" / table / f"{number}.parquet")
    found: list[dict[str, Any]] = Results(root).query(sql).to_pylist()
    return found


@pytest.mark.parametrize("table", KEYS)
def test_rows_that_differ_in_any_one_column_have_one_winner(tmp_path: Path, table: str) -> None:
    """Fifty keys for each column and each pair of values in it, NULL among them, so that threads and hash tables mix them up."""
    schema = TABLES[table]
    rows = []
    for field in (field for field in schema if field.name not in KEYS[table]):
        for pair in ((0, 1), (None, 1)):
            for copy in range(50):
                base = {other.name: value(other.type, 0) for other in schema} | {KEYS[table][0]: f"{field.name}-{pair}-{copy}"}
                rows.append([base | {field.name: None if one is None else value(field.type, one)} for one in pair])
    first, second = [pair[0] for pair in rows], [pair[1] for pair in rows]
    sql = f"SELECT * FROM {table} ORDER BY ALL"
    one = answers(tmp_path / "one", table, [first, second], sql)
    assert len(one) == len(rows)
    assert answers(tmp_path / "other", table, [second[::-1], first[::-1]], sql) == one
    assert answers(tmp_path / "together", table, [[row for pair in rows for row in pair]], sql) == one
    assert answers(tmp_path / "twice", table, [first, second, first], sql) == one, "a part that is there twice changes nothing"


def test_of_a_score_the_highest_version_wins_whenever_it_was_written(tmp_path: Path) -> None:
    key = {"checkpoint_id": "c", "task": "t", "format": "open", "shots": 0, "metric": "acc", "engine": "torch"}
    time = TABLES["scores"].field("scored_at").type
    written = [(2, 0, 0.2), (1, 1, 0.1), (3, 0, 0.3), (None, 2, 0.9)]
    rows = [key | {"task_version": v, "scored_at": value(time, at), "value": x} for v, at, x in written]
    losses = pa.Table.from_pylist([{"checkpoint_id": "c", "dataset": "d", "unit": "u", "value": 1.0}], schema=TABLES["losses"])
    for number, parts in enumerate(([rows], [rows[::-1]], [[row] for row in rows], [[row] for row in rows[::-1]])):
        (tmp_path / str(number) / "parts" / "losses").mkdir(parents=True)
        pq.write_table(losses, tmp_path / str(number) / "parts" / "losses" / "one.parquet")
        assert answers(tmp_path / str(number), "scores", parts, "SELECT value FROM curve") == [{"value": 0.3}]
