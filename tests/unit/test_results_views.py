"""Views and macros: what `curve` joins, which duplicate wins, whose parts are readable, what the macros compute."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from losslens.errors import DataMismatch, UserError
from losslens.results import Results, database
from losslens.results.tables import TABLES

SCORE = {
    "task": "sort", "task_version": 1, "format": "open", "shots": 0, "metric": "exact_match", "stderr": 0.01, "n": 100,
    "chance": 0.0, "higher_is_better": True, "engine": "torch/float32", "scored_at": datetime(2026, 1, 1, tzinfo=UTC),
}  # fmt: skip


def add_run(results: Results, run: str, losses: list[float], values: list[float], **score: Any) -> None:
    """A run whose checkpoint k has `losses[k]` and `values[k]`, at step k, 1,000 k tokens and 1e6 k FLOPs."""
    results.write("runs", [{"run_id": run, "study": "s", "size": run.split("-")[0], "params": len(run), "seed": 0}])
    names = [f"{run}/{step}" for step in range(len(losses))]
    rows = [{"checkpoint_id": n, "run_id": run, "step": k, "tokens": 1000 * k, "flops": 1e6 * k} for k, n in enumerate(names)]
    results.write("checkpoints", rows)
    pairs = list(zip(names, losses, strict=True))
    results.write("losses", [{"checkpoint_id": n, "dataset": "heldout", "unit": "nats/token", "value": v} for n, v in pairs])
    results.write("scores", [{**SCORE, **score, "checkpoint_id": n, "value": v} for n, v in zip(names, values, strict=True)])


def one(results: Results, sql: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = results.query(sql).to_pylist()
    assert len(rows) == 1
    return rows[0]


def test_curve_joins_every_loss_with_every_score_of_a_checkpoint(tmp_path: Path) -> None:
    results = Results(tmp_path)
    add_run(results, "small", [3.0, 2.0], [0.0, 0.5])
    results.write("losses", [{"checkpoint_id": "small/1", "dataset": "train", "unit": "bits/byte", "value": 1.5}])
    found = results.query("SELECT * FROM curve ORDER BY step, loss_dataset").to_pylist()
    assert [(row["step"], row["loss_dataset"], row["loss_unit"], row["loss"], row["value"]) for row in found] == [
        (0, "heldout", "nats/token", 3.0, 0.0),
        (1, "heldout", "nats/token", 2.0, 0.5),
        (1, "train", "bits/byte", 1.5, 0.5),
    ]
    promised = (
        "study, run_id, size, params, architecture, optimizer, seed, step, tokens, flops, loss_dataset, loss_unit, loss, "
        "task, format, shots, metric, value, stderr, n, chance, higher_is_better"
    )
    assert ", ".join(found[0]).startswith(promised + ", ")
    assert found[0]["study"] == "s" and found[0]["architecture"] is None


def test_curve_takes_the_newest_version_then_the_earliest_score_then_the_first_engine(tmp_path: Path) -> None:
    results = Results(tmp_path)
    add_run(results, "r", [2.0], [0.1])
    early, late = datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)
    for version, at, engine, value in [(2, late, "vllm", 0.2), (2, early, "vllm", 0.3), (2, early, "torch", 0.4), (1, early, "a", 0.5)]:
        row = {**SCORE, "checkpoint_id": "r/0", "task_version": version, "scored_at": at, "engine": engine, "value": value}
        results.write("scores", [row])
    assert one(results, "SELECT value, engine FROM curve") == {"value": 0.4, "engine": "torch"}
    assert one(results, "SELECT count(*) AS n, count(DISTINCT engine) AS engines FROM scores") == {"n": 4, "engines": 4}
    assert one(results, "SELECT count(*) AS n FROM parts.scores") == {"n": 5}


def test_rows_written_again_show_once(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for day, params in ((1, 10), (2, 20)):
        results.write("runs", [{"run_id": "r", "params": params, "created_at": datetime(2026, 1, day, tzinfo=UTC)}])
        log = {"run_id": "r", "attempt": 1, "step": 5, "loss": float(day), "time": datetime(2026, 1, day, tzinfo=UTC)}
        results.write("train_log", [log])
        verdict = {"task": "t", "metric": "acc", "loss_dataset": "train", "loss_unit": "nats/token", "verdict": "gradual", "eta": day}
        results.write("thresholds", [{**verdict, "computed_at": datetime(2026, 1, day, tzinfo=UTC)}])
        results.write("losses", [{"checkpoint_id": "c", "dataset": "d", "unit": "u", "value": float(day), "tokens": 10 * day}])
    assert one(results, "SELECT params FROM runs") == {"params": 20}
    assert one(results, "SELECT loss FROM train_log") == {"loss": 2.0}
    assert one(results, "SELECT eta FROM thresholds") == {"eta": 2.0}
    assert one(results, "SELECT value FROM losses") == {"value": 2.0}


def test_a_later_comparison_replaces_all_levels_of_an_earlier_one(tmp_path: Path) -> None:
    results = Results(tmp_path)
    key: dict[str, object] = {"task": "t", "metric": "acc", "loss_dataset": "train", "loss_unit": "nats/token"}
    key |= {"axis": "loss", "verdict": "same", "margin": 2.0}
    for day, by, pairs in [
        (1, "size", ["large<medium"]), (2, "size", ["large<small"]),
        (1, "optimizer", ["adamw<muon", "lion<muon"]), (2, "optimizer", ["muon<adamw", "lion<adamw"]),
    ]:  # fmt: skip
        levels = (dict(zip(("level", "reference"), pair.split("<"), strict=True)) for pair in pairs)
        dated = {"property": by, "computed_at": datetime(2026, 1, day, tzinfo=UTC)}
        results.write("same_curve", [key | dated | level for level in levels])
    found = results.query("SELECT level || '<' || reference AS pair FROM same_curve ORDER BY ALL").column("pair").to_pylist()
    assert found == ["large<small", "lion<adamw", "muon<adamw"]


def test_parts_of_anybody_are_read_with_missing_columns_null_and_strange_ones_ignored(tmp_path: Path) -> None:
    for table, rows in {
        "scores": {"checkpoint_id": ["c", "d"], "task": ["t", "t"], "metric": ["acc", "acc"], "value": pa.array([1, 0], pa.int32())},
        "losses": {
            "checkpoint_id": ["c", "d"],
            "dataset": ["x", "x"],
            "value": pa.array([2.5, 2.0], pa.float32()),
            "mood": ["good", "bad"],
        },
        "checkpoints": {"checkpoint_id": pa.array(["c"]).dictionary_encode(), "run_id": ["r"], "step": pa.array([7], pa.uint16())},
    }.items():
        (tmp_path / "parts" / table).mkdir(parents=True)
        pq.write_table(pa.table(rows), tmp_path / "parts" / table / "theirs.parquet")
    results = Results(tmp_path)
    found = results.query("SELECT step, loss, value, shots, higher_is_better, study FROM curve ORDER BY loss DESC").to_pylist()
    unknown = {"shots": None, "higher_is_better": None, "study": None}
    assert found == [{"step": 7, "loss": 2.5, "value": 1.0, **unknown}, {"step": None, "loss": 2.0, "value": 0.0, **unknown}]
    assert results.query("SELECT * FROM samples").num_rows == 0
    for table, schema in TABLES.items():
        answer = results.query(f"SELECT * FROM {table}")
        assert answer.column_names == schema.names
        assert [field.type for field in answer.schema] == [field.type for field in schema]


def test_a_truncated_part_is_named(tmp_path: Path) -> None:
    results = Results(tmp_path)
    add_run(results, "r", [2.0], [0.1])
    (part,) = (tmp_path / "parts" / "scores").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(DataMismatch, match=part.name) as caught:
        results.query("SELECT * FROM curve")
    assert "\n" not in str(caught.value) and caught.value.remedy


def test_a_part_with_a_value_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "parts" / "losses").mkdir(parents=True)
    pq.write_table(pa.table({"checkpoint_id": ["c"], "value": ["low"]}), tmp_path / "parts" / "losses" / "theirs.parquet")
    with pytest.raises(DataMismatch, match=r"theirs\.parquet"):
        Results(tmp_path).query("SELECT * FROM losses")


def test_a_directory_without_parts_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results"):
        Results(tmp_path / "nowhere").query("SELECT 1")


@pytest.mark.parametrize(
    ("sql", "said", "remedy"),
    [
        ("INSERT INTO runs VALUES (1)", "INSERT does more than read", "one statement that reads"),
        ("COPY runs TO '{out}'", "COPY does more than read", ""),
        ("WITH x AS (COPY (SELECT 1) TO '{out}') SELECT * FROM x", "the statement holds COPY", ""),
        ("WITH x AS (INSERT INTO t VALUES (1) RETURNING *) FROM x", "the statement holds INSERT", ""),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'", "EXPLAIN does more", ""),
        ("ATTACH '{out}' AS other", "ATTACH does more", ""),
        ("CREATE TABLE t (i INT)", "CREATE does more", ""),
        ("DROP VIEW curve", "DROP does more", ""),
        ("SET threads = 1", "SET does more", ""),
        ("SELECT 1; SELECT 2", "2 were given", ""),
        ("", "0 were given", ""),
        ("SELCT 1", "syntax error", ""),
        ("SELECT flop FROM curve", '"flop" not found', "flops"),
        ("SELECT * FROM curv", "curv does not exist", "curve"),
        ("SELECT CAST(task AS INT) FROM curve", "Could not convert", ""),
    ],
)
def test_anything_but_reading_is_refused_in_one_sentence(tmp_path: Path, sql: str, said: str, remedy: str) -> None:
    results = Results(tmp_path / "results")
    add_run(results, "r", [2.0], [0.1])
    out = tmp_path / "out"
    with pytest.raises(UserError, match=said) as caught:
        results.query(sql.format(out=out))
    assert remedy in caught.value.remedy and caught.value.remedy
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(
    "sql", ["DESCRIBE curve", "SHOW TABLES", "FROM curve; -- all", "VALUES (1)", "WITH a AS (FROM runs) FROM a UNION ALL FROM a"]
)
def test_every_way_of_reading_is_allowed(tmp_path: Path, sql: str) -> None:
    results = Results(tmp_path)
    add_run(results, "r", [2.0], [0.1])
    assert results.query(sql).num_rows > 0


def test_parameters_are_values(tmp_path: Path) -> None:
    results = Results(tmp_path)
    add_run(results, "r", [2.0], [0.1], task="it's; DROP")
    assert results.query("SELECT * FROM curve WHERE task = ?", ["it's; DROP"]).num_rows == 1


def test_curve_filters_and_names_what_there_is(tmp_path: Path) -> None:
    results = Results(tmp_path)
    add_run(results, "r", [2.0], [0.1])
    add_run(results, "q", [2.0], [0.1], task="copy")
    assert results.curve().num_rows == 2
    assert results.curve(task="copy").num_rows == 1
    assert results.curve(task=["copy", "sort"], study="s").num_rows == 2
    with pytest.raises(UserError, match="No scored checkpoint has task coppy") as caught:
        results.curve(task="coppy")
    assert "copy, sort" in caught.value.remedy


def test_crossings_is_the_first_checkpoint_that_stays_above(tmp_path: Path) -> None:
    results = Results(tmp_path)
    add_run(results, "a", [3.0, 2.5, 2.2, 2.0, 1.9], [0.0, 0.6, 0.2, 0.7, 0.8])  # above at step 1, but stays from step 3
    add_run(results, "bb", [3.0, 2.0], [0.0, 0.1])  # never
    add_run(results, "a-brier", [3.0, 2.5, 2.0], [0.9, 0.4, 0.3], metric="brier", higher_is_better=False)
    found = results.query("SELECT run_id, step, tokens, flops, loss, value FROM crossings('sort', 'exact_match', 0.5)").to_pylist()
    assert found == [
        {"run_id": "a", "step": 3, "tokens": 3000, "flops": 3e6, "loss": 2.0, "value": 0.7},
        {"run_id": "bb", "step": None, "tokens": None, "flops": None, "loss": None, "value": None},
    ]
    assert one(results, "SELECT step, loss FROM crossings(task := 'sort', metric := 'brier', level := 0.5)") == {"step": 1, "loss": 2.5}


def test_at_loss_interpolates_each_run_and_averages_a_sizes_runs(tmp_path: Path) -> None:
    results = Results(tmp_path)
    add_run(results, "a-1", [3.0, 2.0], [0.0, 1.0])  # at 2.25: 0.75
    add_run(results, "a-2", [2.5, 2.0], [0.2, 0.4])  # at 2.25: 0.3
    add_run(results, "b-long", [3.0, 2.5], [0.1, 0.2])  # not reached
    found = results.query("SELECT size, value, lowest, highest, n_runs FROM at_loss('sort', 'exact_match', 2.25)").to_pylist()
    assert found == [
        {"size": "a", "value": pytest.approx(0.525), "lowest": pytest.approx(0.3), "highest": pytest.approx(0.75), "n_runs": 2},
        {"size": "b", "value": None, "lowest": None, "highest": None, "n_runs": 0},
    ]
    exact = results.query("SELECT value FROM at_loss('sort', 'exact_match', 2.5) WHERE size = 'b'").to_pylist()
    assert exact == [{"value": 0.2}]


PLAIN_CLIENT = """
import duckdb, json, sys
with duckdb.connect(sys.argv[1], read_only=True) as connection:
    crossed = "SELECT count(*) FROM crossings('sort', 'exact_match', 0.5)"
    print(json.dumps([connection.execute(sql).fetchone()[0] for sql in ("SELECT count(*) FROM curve", crossed)]))
"""


def plain_client(root: Path, cwd: Path) -> list[int]:
    """What a DuckDB client that knows nothing of us answers, from another working directory."""
    command = [sys.executable, "-c", PLAIN_CLIENT, str(root / database.FILE)]
    answer: list[int] = json.loads(subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout)
    return answer


def test_results_duckdb_answers_a_plain_client_from_anywhere_and_sees_later_parts(tmp_path: Path) -> None:
    results = Results(tmp_path / "it's [a] study=x")
    add_run(results, "a", [3.0, 2.0], [0.0, 1.0])
    results.refresh()
    assert plain_client(results.root, tmp_path) == [2, 1]
    add_run(results, "b", [3.0, 2.5, 2.0], [0.0, 0.5, 1.0])
    assert plain_client(results.root, tmp_path) == [5, 2]


def test_a_moved_directory_is_mended_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = Results(tmp_path / "before")
    add_run(before, "a", [3.0, 2.0], [0.0, 1.0])
    before.refresh()
    with duckdb.connect(before.root / database.FILE) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 42 AS answer")
    before.root.rename(tmp_path / "after")
    with caplog.at_level(logging.WARNING):
        assert Results(tmp_path / "after").query("SELECT * FROM curve").num_rows == 2
    assert "was made elsewhere" in caplog.text
    assert plain_client(tmp_path / "after", tmp_path) == [2, 1]
    with duckdb.connect(tmp_path / "after" / database.FILE, read_only=True) as connection:
        assert connection.execute("FROM mine").fetchall() == [(42,)], "what users added stays"
    caplog.clear()
    Results(tmp_path / "after").query("SELECT 1")
    assert caplog.text == ""


HOLD = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def test_a_database_that_another_process_holds_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = Results(tmp_path)
    add_run(results, "a", [3.0, 2.0], [0.0, 1.0])
    results.refresh()
    command = [sys.executable, "-c", HOLD, str(tmp_path / database.FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with caplog.at_level(logging.WARNING):
            results.refresh()
        assert "in use by another process" in caplog.text
        assert results.query("SELECT * FROM curve").num_rows == 2
        holder.communicate("")
    assert plain_client(tmp_path, tmp_path) == [2, 1]


def test_a_damaged_database_is_named_not_replaced(tmp_path: Path) -> None:
    results = Results(tmp_path)
    add_run(results, "a", [3.0, 2.0], [0.0, 1.0])
    (tmp_path / database.FILE).write_bytes(b"not a database" * 1000)
    with pytest.raises(DataMismatch, match=r"results\.duckdb") as caught:
        results.refresh()
    assert "Delete it" in caught.value.remedy


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("SELECT 1", set()),
        ('FROM "Thresholds"', {"thresholds"}),
        ("SELECT * FROM curve", {"runs", "checkpoints", "losses", "scores"}),
        ("FROM CROSSINGS('t', 'm', 1)", {"runs", "checkpoints", "losses", "scores"}),
        ("FROM parts.samples", {"samples"}),
    ],
)
def test_only_tables_that_a_statement_can_mean_are_looked_at(sql: str, tables: set[str]) -> None:
    assert set(database.reached(sql)) == tables


def test_threads_ask_at_once_and_see_what_was_just_written(tmp_path: Path) -> None:
    results = Results(tmp_path)
    add_run(results, "r", [2.0], [0.1])

    def ask(number: int) -> int:
        add_run(results, f"r-{number}", [2.0], [0.1])
        return int(results.query("SELECT * FROM curve WHERE run_id = ?", [f"r-{number}"]).num_rows)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(8))) == [1] * 8
    assert results.query("SELECT * FROM curve").num_rows == 9
