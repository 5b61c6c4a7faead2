"""Parts: content addressing, and what a kill or a full disk at any moment leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from losslens.errors import DataMismatch, UserError
from losslens.results import Results, layout, parts
from losslens.results.tables import LOSSES, REQUIRED, TABLES

PLATFORM = Path(parts.__file__).parents[2]

loss_rows = st.lists(
    st.fixed_dictionaries(
        {"checkpoint_id": st.text(max_size=8), "dataset": st.sampled_from(["train", "heldout"]), "unit": st.just("nats/token")},
        optional={"tokens": st.integers(0, 2**60), "stderr": st.floats(0, 1)},
    ).flatmap(lambda row: st.floats(-1e6, 1e6).map(lambda value: {**row, "value": value})),
    min_size=1,
    max_size=20,
)


@given(rows=loss_rows, cut=st.integers(0, 20))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equal_rows_make_one_part_however_they_come(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], cut: int) -> None:
    results = Results(tmp_path_factory.mktemp("content"))
    path = results.write("losses", rows)
    whole = pa.Table.from_pylist(rows, schema=LOSSES)
    chunked = pa.concat_tables([whole.slice(0, cut), whole.slice(cut)])
    reordered = chunked.select(list(reversed(chunked.column_names)))
    assert results.write("losses", chunked) == path
    assert results.write("losses", reordered) == path
    assert path is not None and parts.listed(results.root, "losses") == [results.root / path]
    assert pq.read_table(results.root / path).to_pylist() == whole.to_pylist()


def test_different_rows_make_different_parts(tmp_path: Path) -> None:
    results = Results(tmp_path)
    row = {"checkpoint_id": "a", "dataset": "train", "unit": "nats/token", "value": 1.0}
    assert results.write("losses", [row]) != results.write("losses", [row, row])


def test_no_rows_make_no_part(tmp_path: Path) -> None:
    assert Results(tmp_path).write("losses", []) is None
    assert not (tmp_path / "parts").exists()


SCORE = {"checkpoint_id": "a", "task": "t", "format": "open", "metric": "acc", "value": 0.5, "stderr": 0.1, "n": 9}


@pytest.mark.parametrize(
    ("table", "rows", "said"),
    [
        ("losses", [{"checkpoint_id": "a", "colour": "red"}], "no column 'colour'"),
        ("losses", [{"checkpoint_id": "a", "dataset": "d", "unit": "u", "value": "high"}], "do not fit the columns of losses"),
        ("losses", [{"checkpoint_id": "a", "dataset": "d", "unit": "u", "value": float("nan")}], "no value"),
        ("scores", [{**SCORE, "higher_is_better": True}], "no chance"),
        ("scores", [{**SCORE, "higher_is_better": True, "chance": 0.5, "stderr": None}], "no stderr"),
        ("scores", [{**SCORE, "chance": 0.5}], "no higher_is_better"),
    ],
)
def test_rows_that_do_not_fit_are_refused_in_one_sentence(tmp_path: Path, table: str, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Results(tmp_path).write(table, rows)
    assert caught.value.remedy
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_damaged_part_is_not_overwritten_in_silence(tmp_path: Path) -> None:
    results = Results(tmp_path)
    row = {"run_id": "r", "step": 1}
    written = results.write("train_log", [row])
    assert written is not None
    path = tmp_path / written
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataMismatch, match=path.name):
        results.write("train_log", [row])


FILL = """
import resource, signal, sys
from losslens.errors import EnvironmentFailure
from losslens.results import Results
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the kernel refuses to grow a file beyond, as on a full disk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import random
rows = [{"run_id": str(random.random()), "step": i, "loss": random.random()} for i in range(20_000)]
try:
    Results(sys.argv[1]).write("train_log", rows)
except EnvironmentFailure as failure:
    print(failure, failure.remedy)
    raise SystemExit(failure.exit_code)
"""


def run(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env={"PYTHONPATH": str(PLATFORM)}, stdout=subprocess.PIPE, text=True)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with run(FILL, str(tmp_path)) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert said.startswith("No space is left to write") and "Free some space" in said
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"layout-{layout.LAYOUT}"]


WRITE_FOREVER = """
import sys
from losslens.results import Results
results, writer, step = Results(sys.argv[1]), sys.argv[2], 0
while True:
    results.write("train_log", [{"run_id": writer, "attempt": attempt, "step": step, "loss": 1.0} for attempt in (0, 1)])
    print(step, flush=True)  # acknowledged only after write returned
    step += 1
"""


def test_killed_writers_lose_nothing_acknowledged_and_leave_no_half_row(tmp_path: Path) -> None:
    writers = [run(WRITE_FOREVER, str(tmp_path), f"w{number}") for number in range(3)]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.rglob("*.parquet"))) < 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    acknowledged = {}
    for number, process in enumerate(writers):
        process.kill()
        said, _ = process.communicate(timeout=60)
        acknowledged[f"w{number}"] = len(said.split())
    results = Results(tmp_path)
    stored = results.query("SELECT run_id, step, count(*) AS rows FROM train_log GROUP BY ALL").to_pylist()
    assert all(row["rows"] == 2 for row in stored), "a part is all of its rows or absent"
    for writer, count in acknowledged.items():
        assert {row["step"] for row in stored if row["run_id"] == writer} >= set(range(count))
    assert sum(acknowledged.values()) > 0
    assert list(parts.verify(results.place)) == []


def test_temporary_files_of_killed_writers_are_not_read_and_go_after_a_day(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write("train_log", [{"run_id": "r", "step": 1}])
    old, young = (parts.folder(tmp_path, "train_log") / name for name in (".tmp-1-old", ".tmp-2-young"))
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    two_days_ago = time.time() - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))
    assert results.query("SELECT count(*) AS n FROM train_log").to_pylist() == [{"n": 1}]
    results.refresh()
    assert young.exists() and not old.exists()


def test_every_table_has_its_required_columns() -> None:
    assert REQUIRED.keys() == TABLES.keys()
    assert all(set(columns) <= set(TABLES[table].names) for table, columns in REQUIRED.items())
