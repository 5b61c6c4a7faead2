"""Many processes at once: writers that are killed, compactors, and readers that know nothing but DuckDB."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from losslens.results import Results, database, parts
from tests.bench.kill_writers import counted, kill_writers
from tests.conftest import Process


def test_kill_9_of_eight_writers_and_a_compactor_loses_nothing(tmp_path: Path) -> None:
    """`python -m tests.bench.kill_writers` does it 200 times."""
    (tmp_path / "notes").mkdir()
    found = kill_writers(tmp_path / "results", tmp_path / "notes", rounds=3, writers=8)
    assert found.kills == 24 and found.acknowledged >= 24
    assert (found.lost, found.half) == (0, 0)
    assert found.acknowledged <= found.stored <= found.acknowledged + found.kills


def test_a_part_that_the_kill_test_would_miss_is_missed(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    kill_writers(tmp_path / "results", tmp_path / "notes", rounds=1, writers=2)
    with open(tmp_path / "notes" / "0-0", "a") as note:
        note.write("x" * 100_000)
    assert counted(tmp_path / "results", tmp_path / "notes", 2).lost > 90_000


WRITE = """
import itertools, sys, time
from losslens.results import Results
results = Results(sys.argv[1])
for step in itertools.count():
    results.write("checkpoints", [{"checkpoint_id": f"{sys.argv[2]}/{step}", "run_id": sys.argv[2], "step": step}])
    time.sleep(0.02)
    if step == 3:
        print("writing", flush=True)
"""

COMPACT = """
import sys
from losslens.results import Results
while True:
    Results(sys.argv[1]).compact()
    print("compacted", flush=True)
"""

READ = """
import duckdb, json, sys
seen = []
for _ in range(20):
    with duckdb.connect(sys.argv[1], read_only=True) as connection:
        seen.append(connection.execute("SELECT count(*), count(DISTINCT checkpoint_id) FROM checkpoints").fetchone())
assert not {'losslens', 'pyarrow'} & set(sys.modules)
print(json.dumps(seen))
"""


@contextmanager
def process(code: str, *arguments: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None and started.stdout.readline()
            yield started
        finally:
            started.kill()


def test_a_plain_duckdb_client_reads_while_others_write_and_compact(tmp_path: Path, environment: dict[str, str]) -> None:
    root = tmp_path / "results"
    Results(root).write("checkpoints", [{"checkpoint_id": "first", "run_id": "r"}])
    Results(root).refresh()
    with (
        process(WRITE, str(root), "a", environment=environment),
        process(WRITE, str(root), "b", environment=environment),
        process(COMPACT, str(root), environment=environment),
    ):
        reader = [sys.executable, "-c", READ, str(root / database.FILE)]
        plain = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
        seen = json.loads(subprocess.run(reader, cwd=tmp_path, env=plain, check=True, capture_output=True, text=True, timeout=200).stdout)
    counts = [n for n, _ in seen]
    assert counts == sorted(counts) and counts[0] < counts[-1], "rows come and never go, though they are being merged"
    assert all(n == distinct for n, distinct in seen), "none is there twice"
    assert any(path.name.startswith("g") for path in parts.listed(root, "checkpoints"))
    assert list(parts.verify(Results(root).place)) == []


def test_the_verb_merges_and_says_so(tmp_path: Path, losslens: Callable[..., Process]) -> None:
    for step in range(4):
        Results(tmp_path).write("train_log", [{"run_id": "r", "attempt": 1, "step": step}])
    rows = json.loads(losslens("compact", "--results", tmp_path, "--format", "json").stdout)
    (row,) = [row for row in rows if row["table"] == "train_log"]
    assert row == {"table": "train_log", "merged": 4, "into": 1, "rows": 4, "removed": 0}
    (tmp_path / "parts" / "layout-99").touch()
    refused = losslens("compact", "--results", tmp_path)
    assert refused.returncode == 2 and "newer losslens" in refused.stderr and "Traceback" not in refused.stderr
    assert losslens("compact", "--results", tmp_path / "nowhere").returncode == 2


def test_a_grace_that_is_none_is_refused(tmp_path: Path, losslens: Callable[..., Process]) -> None:
    assert losslens("compact", "--results", tmp_path, "--grace", "-1").returncode == 2
