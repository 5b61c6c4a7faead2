"""How long the results take to answer, with ten million scores and tens of millions of samples.

    python tests/bench/bench_results.py [--scores 10000000] [--samples 40000000] [--results DIR]

Each run writes one part per table, as an import or the scorers of one run would; then they are compacted. Every query is timed through
`Results` and through a plain DuckDB client on results.duckdb: the median and the least of seven; views are made and files cached.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from losslens.results import Results, database
from losslens.results.tables import TABLES

RUNS, CHECKPOINTS, TASKS, METRICS = 500, 20, 200, ("acc", "acc_norm", "brier", "correct_choice_prob", "bits_per_byte")

QUERIES = {
    "curve of one task": "SELECT * FROM curve WHERE task = 'task100'",
    "curve of one task, averaged": "SELECT size, metric, avg(value), avg(loss) FROM curve WHERE task = 'task100' GROUP BY ALL",
    "thresholds of all tasks": "SELECT * FROM thresholds",
    "crossings": "FROM crossings('task100', 'acc', 0.5)",
    "at_loss": "FROM at_loss('task100', 'acc', 3.0)",
}
EVERY_SCORE = {"every score, counted by task": "SELECT task, count(*) FROM scores GROUP BY task"}
SAMPLES = {
    "samples of one task and checkpoint": "SELECT * FROM samples WHERE task = 'task003' AND checkpoint_id = 'size3-seed0@7000'",
    "samples of one task, averaged": "SELECT checkpoint_id, avg(correct::INT) FROM samples WHERE task = 'task003' GROUP BY ALL",
}


def described(generator: duckdb.DuckDBPyConnection, results: Results) -> None:
    """Runs, checkpoints, losses and thresholds."""
    generator.execute(f"""
        CREATE TABLE c AS
        SELECT a.r, 'size' || a.r % 50 || '-seed' || a.r // 50 AS run_id, run_id || '@' || b.k * 1000 AS checkpoint_id, b.k * 1000 AS step
        FROM range({RUNS}) AS a(r), range(1, {CHECKPOINTS + 1}) AS b(k)""")
    write(generator, results, "runs", """
        SELECT DISTINCT run_id, 'bench' AS study, 'size' || r % 50 AS size, 1000000 * (1 + r % 50) AS params, 0 AS seed,
               'llama' AS architecture
        FROM c""")  # fmt: skip
    write(generator, results, "checkpoints", "SELECT checkpoint_id, run_id, step, step * 2000000 AS tokens, step * 1e15 AS flops FROM c")
    write(generator, results, "losses", """
        SELECT checkpoint_id, d.d AS dataset, 'nats/token' AS unit, 4 - step / 1e4 + random() / 10 AS value, 0.01 AS stderr,
               100000 AS tokens
        FROM c, (VALUES ('train'), ('heldout')) AS d(d)""")  # fmt: skip
    write(generator, results, "thresholds", f"""
        SELECT 'bench' AS study, 'task' || lpad(t.t::VARCHAR, 3, '0') AS task, 'text' AS format, 0 AS shots, m.m AS metric,
               d.d AS loss_dataset, 'nats/token' AS loss_unit, 'emergent' AS verdict, random() AS eta,
               TIMESTAMPTZ '2026-01-01' + to_days(k.k::INT) AS computed_at
        FROM range({TASKS}) AS t(t), (SELECT unnest({list(METRICS)}) AS m) AS m, (VALUES ('train'), ('heldout')) AS d(d), range(5) AS k(k)
    """)  # fmt: skip


def score(generator: duckdb.DuckDBPyConnection, results: Results, run: int, rows: int) -> None:
    """The scores of one run: every metric of as many tasks as `rows` allow, at each of its checkpoints."""
    write(generator, results, "scores", f"""
        SELECT checkpoint_id, 'task' || lpad(t.t::VARCHAR, 3, '0') AS task, 1 AS task_version, 'text' AS format, 0 AS shots, m.m AS metric,
               random() AS value, 0.01 AS stderr, 1000 AS n, 0.25 AS chance, true AS higher_is_better, 'torch/float32' AS engine,
               TIMESTAMPTZ '2026-01-01' + to_seconds(step) AS scored_at
        FROM c, range({rows // CHECKPOINTS // len(METRICS)}) AS t(t), (SELECT unnest({list(METRICS)}) AS m) AS m WHERE r = {run}
    """)  # fmt: skip


def sample(generator: duckdb.DuckDBPyConnection, results: Results, run: int, rows: int) -> None:
    """The samples of one run: four options of the items of ten tasks."""
    write(generator, results, "samples", f"""
        SELECT checkpoint_id, 'task' || lpad(t.t::VARCHAR, 3, '0') AS task, 1 AS task_version, 'text' AS format, 0 AS shots,
               'item' || i.i AS item_id, o.o AS option, o.o = i.i % 4 AS is_gold, (-30 * random())::FLOAT::DOUBLE AS logprob,
               5 + i.i % 7 AS tokens, 20 + i.i % 30 AS bytes, random() < 0.5 AS correct, 'torch/float32' AS engine
        FROM c, range(10) AS t(t), range({rows // CHECKPOINTS // 40}) AS i(i), range(4) AS o(o) WHERE r = {run}
    """)  # fmt: skip


def write(generator: duckdb.DuckDBPyConnection, results: Results, table: str, sql: str) -> None:
    results.write(table, generator.sql(sql).to_arrow_table())


def clocked(do: Callable[[], Any], times: int) -> str:
    """Median and least seconds of a call that has been made once before."""
    do()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        do()
        taken.append(time.perf_counter() - began)
    return f"{statistics.median(taken):7.3f} s, least {min(taken):.3f}"


def ask(results: Results, queries: dict[str, str], times: int = 7) -> None:
    """Print a line for each query."""
    results.refresh()
    with duckdb.connect(results.root / database.FILE, read_only=True) as plain:
        for name, sql in queries.items():
            ours = clocked(lambda sql=sql: results.query(sql), times)  # type: ignore[misc]
            theirs = clocked(lambda sql=sql: plain.sql(sql).to_arrow_table(), times)  # type: ignore[misc]
            print(f"  {name:36} {ours}   plain client {theirs}   {results.query(sql).num_rows:9,} rows", flush=True)


def compacted(results: Results) -> None:
    """Compact, keeping nothing of what was merged, and say how large things are."""
    began = time.perf_counter()
    merged = results.compact(grace=0)
    seconds = time.perf_counter() - began
    parts, into, rows = (sum(getattr(table, name) for table in merged) for name in ("merged", "into", "rows"))
    print(f"compaction: {parts} parts of {rows:,} rows into {into}, {seconds:.1f} s")
    for table in ("scores", "samples"):
        sizes = [path.stat().st_size for path in (results.root / "parts" / table).glob("*.parquet")]
        print(f"  {table}: {len(sizes)} parts, {sum(sizes) / 1e6:,.0f} MB")


def filled(name: str, rows: int, one: Callable[[int, int], None], parts: int = RUNS) -> None:
    began = time.perf_counter()
    for run in range(parts):
        one(run, rows // parts)
    seconds = time.perf_counter() - began
    print(f"{rows:,} {name} made and written in {seconds:.0f} s: {rows / seconds:,.0f} rows/s", flush=True)


def main() -> None:
    """Fill, compact, ask; samples in quarters, for the slope."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", type=int, default=10_000_000)
    parser.add_argument("--samples", type=int, default=40_000_000)
    parser.add_argument("--results", type=Path, help="where there is room (default: the temporary directory)")
    given = parser.parse_args()
    assert set(TABLES) >= {"scores", "samples"}
    print(f"{os.cpu_count()} cores, DuckDB {duckdb.__version__}")
    with tempfile.TemporaryDirectory(dir=given.results) as folder, duckdb.connect() as generator:
        generator.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = false; SET memory_limit = '1GB'")
        results = Results(folder)
        described(generator, results)
        filled("scores", given.scores, lambda run, rows: score(generator, results, run, rows))
        print("before compaction:")
        ask(results, dict(list(QUERIES.items())[:1]))
        compacted(results)
        ask(results, QUERIES)
        ask(results, EVERY_SCORE, times=1)
        for quarter in range(4):
            first = quarter * 20
            filled("samples", given.samples // 4, lambda run, rows, first=first: sample(generator, results, first + run, rows), 20)  # type: ignore[misc]
            compacted(results)
            ask(results, SAMPLES)
        ask(results, dict(list(QUERIES.items())[:1]))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
