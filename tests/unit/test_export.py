"""`losslens export`, and results in pandas and Polars: every kind of file says the same, and is there whole or not at all."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.export import export
from losslens.errors import EnvironmentFailure, UserError
from losslens.results import Results
from losslens.results.exports import KINDS
from losslens.results.tables import TABLES
from tests.conftest import REPO, Process
from tests.synthetic import NOW, TASKS, write_study

Losslens = Callable[..., Process]
ODD = 'Org/"model",\nof two lines; 中😀'


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    write_study(root, tasks=TASKS[:3], checkpoints=5)
    Results(root).write("checkpoints", [{"checkpoint_id": "odd", "run_id": ODD, "tokens": 2**60 + 1}])
    return root


def rows_of(file: Path) -> list[dict[str, Any]]:
    """What a tool that knows nothing of us reads from the file; of a csv every value is text."""
    if file.suffix == ".parquet":
        found: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return found
    text = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode()
    return list(csv.DictReader(StringIO(text, newline=""))) if ".csv" in file.name else [json.loads(line) for line in text.splitlines()]


def as_written(value: Any, ending: str) -> Any:
    """A value of the results as a file of that kind has it."""
    if value is not None and ending.startswith(".csv"):
        return {True: "true", False: "false"}.get(value) if isinstance(value, bool) else str(value)
    return "" if value is None and ending.startswith(".csv") else value


@pytest.mark.parametrize("ending", KINDS)
def test_every_kind_of_file_holds_the_same_rows(ending: str, results: Path, tmp_path: Path) -> None:
    out = tmp_path / f"checkpoints{ending}"
    done = export(results, "checkpoints", out, {})
    expected = Results(results).query("SELECT * FROM checkpoints ORDER BY ALL").to_pylist()
    found = rows_of(out)
    assert done == {"file": str(out), "table": "checkpoints", "rows": 21, "bytes": out.stat().st_size}
    assert len(found) == len(expected) == 21
    for mine, theirs in zip(found, expected, strict=True):
        assert list(mine) == list(theirs)
        for name, value in theirs.items():
            if isinstance(value, datetime) and ending != ".parquet":
                assert datetime.fromisoformat(mine[name]) == value == NOW
            elif isinstance(value, float) and ending.startswith(".csv"):
                assert float(mine[name]) == value
            else:
                assert mine[name] == as_written(value, ending)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_curve_by_the_filters_of_the_analyses(results: Path, tmp_path: Path) -> None:
    wanted = {"task": ["skill_copy", "skill_reverse"], "loss_dataset": ["heldout"]}
    export(results, "curve", tmp_path / "curve.parquet", wanted)
    found = pq.read_table(tmp_path / "curve.parquet")
    expected = Results(results).curve(task=["skill_copy", "skill_reverse"], loss_dataset="heldout")
    assert found.schema.names == expected.schema.names
    assert found.schema.types == expected.schema.types
    assert sorted(map(repr, found.to_pylist())) == sorted(map(repr, expected.to_pylist()))


@pytest.mark.parametrize("table", [*TABLES, "curve"])
def test_every_table_in_its_own_types_and_equal_files_for_equal_rows(table: str, results: Path, tmp_path: Path) -> None:
    if not Results(results).query(f"SELECT count(*) AS n FROM {table}")["n"][0].as_py():
        with pytest.raises(UserError, match=f"{table} has no rows"):
            export(results, table, tmp_path / "none.csv", {})
        assert not list(tmp_path.iterdir())
        return
    for name in ("a.parquet", "b.parquet"):
        export(results, table, tmp_path / name, {})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    if table in TABLES:
        assert pq.read_schema(tmp_path / "a.parquet").types == TABLES[table].types


def test_a_file_that_is_there_is_replaced_when_told_to_and_as_a_whole(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "losses.csv"
    out.write_text("mine")
    with pytest.raises(UserError, match="is there already") as caught:
        export(results, "losses", out, {})
    assert "--force" in caught.value.remedy
    with pytest.raises(UserError, match="curve has no rows of task none"):
        export(results, "curve", out, {"task": ["none"]}, force=True)
    assert out.read_text() == "mine"
    assert export(results, "losses", out, {}, force=True)["rows"] > 0
    assert out.read_text().startswith("checkpoint_id,")


@pytest.mark.parametrize(
    ("table", "name", "columns", "error", "says"),
    [
        ("curve", "curve.xlsx", {}, UserError, "is of no kind that is written"),
        ("curve", "curve", {}, UserError, "is of no kind that is written"),
        ("curves", "a.csv", {}, UserError, "curves does not exist"),
        ("curve; DROP VIEW curve", "a.csv", {}, UserError, "does not exist"),
        ("losses", "a.csv", {"task": ["x"]}, UserError, '"task" not found'),
        ("losses", "none/a.csv", {}, EnvironmentFailure, "No such file or directory"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_nothing(
    table: str, name: str, columns: dict[str, list[str]], error: type[UserError], says: str, results: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says) as caught:
        export(results, table, tmp_path / name, columns)
    assert caught.value.remedy and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_quotes_in_names_and_values_are_theirs(results: Path, tmp_path: Path) -> None:
    out = tmp_path / 'it\'s "odd".jsonl'
    assert export(results, "checkpoints", out, {"run_id": [ODD, "' OR true --"]})["rows"] == 1
    assert rows_of(out)[0]["run_id"] == ODD


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
from jobs.cli import main
sys.argv[1:] = ["export", "scores", "--results", sys.argv[1], sys.argv[2]]
main()
"""


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_full_disk_leaves_no_half_file(ending: str, results: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", FULL, str(results), str(tmp_path / f"scores{ending}")]
    failed = subprocess.run(
        command, cwd=REPO, env=environment | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, check=False
    )
    assert (failed.returncode, list(tmp_path.iterdir())) == (3, []), failed.stderr
    assert "cannot be written" in failed.stderr and "Traceback" not in failed.stderr


def test_the_command_line(results: Path, tmp_path: Path, losslens: Losslens) -> None:
    told = losslens("export", tmp_path / "curve.csv", "--task", "skill_copy", "--results", results)
    assert (told.returncode, told.stdout) == (0, "")
    assert f"rows of curve in {tmp_path / 'curve.csv'}" in told.stderr
    assert {row["task"] for row in rows_of(tmp_path / "curve.csv")} == {"skill_copy"}
    assert losslens("export", "thresholds", tmp_path / "t.jsonl.gz", "--results", results).returncode == 0
    assert len(rows_of(tmp_path / "t.jsonl.gz")) == 3
    failed = losslens("export", "a", "b", "c.csv", "--results", results)
    assert (failed.returncode, "a table and a file" in failed.stderr) == (2, True)


def test_pandas(results: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="comes with losslens[notebooks]")
    frame = Results(results).query("SELECT * FROM checkpoints ORDER BY ALL").to_pandas(types_mapper=pandas.ArrowDtype)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        "checkpoint_id": "string[pyarrow]", "run_id": "string[pyarrow]", "step": "int64[pyarrow]", "tokens": "int64[pyarrow]",
        "flops": "double[pyarrow]", "path": "string[pyarrow]", "weights_sha256": "string[pyarrow]",
        "created_at": "timestamp[us, tz=UTC][pyarrow]",
    }  # fmt: skip
    odd = frame[frame["run_id"] == ODD].iloc[0]
    assert (odd["tokens"], odd["step"] is pandas.NA, odd["created_at"] is pandas.NA) == (2**60 + 1, True, True)
    plain = Results(results).curve(task="skill_copy", loss_dataset="heldout").to_pandas()
    assert {name: plain[name].dtype.kind for name in ("tokens", "loss", "value", "higher_is_better")} == {
        "tokens": "i", "loss": "f", "value": "f", "higher_is_better": "b",
    }  # fmt: skip
    assert plain.groupby("size")["value"].max().notna().all()


def test_polars(results: Path) -> None:
    polars = pytest.importorskip("polars", reason="Polars is not installed")
    frame = polars.from_arrow(Results(results).query("SELECT * FROM checkpoints ORDER BY ALL"))
    assert dict(frame.schema) == {
        "checkpoint_id": polars.String, "run_id": polars.String, "step": polars.Int64, "tokens": polars.Int64, "flops": polars.Float64,
        "path": polars.String, "weights_sha256": polars.String, "created_at": polars.Datetime("us", "UTC"),
    }  # fmt: skip
    odd = frame.filter(polars.col("run_id") == ODD).to_dicts()[0]
    assert (odd["tokens"], odd["step"], odd["created_at"]) == (2**60 + 1, None, None)
    assert frame["created_at"].max() == NOW
    dictionary = pa.table({"task": pa.array(["a", "b", "a"]).dictionary_encode()})
    assert polars.from_arrow(dictionary)["task"].cast(polars.String).to_list() == ["a", "b", "a"]
