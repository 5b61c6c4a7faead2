"""Importing a table nobody here has seen: made-up tables of every kind, mappings that are wrong, and rows that cannot be used."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from jobs.cli import app
from jobs.import_results import import_results
from losslens.errors import UserError
from losslens.results import Results
from losslens.results.importers import Imported, table
from losslens.results.importers.mapping import bundled, parsed, read_bundled

DOCUMENT = Path(__file__).parents[2] / "docs" / "IMPORT.md"
LONG: dict[str, Any] = {
    "study": "made-up",
    "source": "nobody",
    "licence": "CC0-1.0",
    "tables": [
        {
            "files": "*",
            "run": {"id": "{model}", "params": "= millions * 1e6", "size": "{millions}M"},
            "checkpoint": {"step": "{step}", "tokens": "= step * 2048"},
            "losses": [{"where": "metric == 'loss'", "value": "{value}", "dataset": "{task}", "unit": "nats/token"}],
            "scores": [
                {"where": "metric in ('acc', 'acc_norm')", "value": "{value}", "task": "{task}", "format": "text", "metric": "{metric}"}
                | {"n": {"table": {"qa": 400, "nli": 100}, "of": "{task}"}, "chance": {"table": {"qa": 0.25, "nli": 0.5}, "of": "{task}"}}
                | {"shots": 5, "stderr": "= (value * (1 - value) / n) ** 0.5"}
            ],
        }
    ],
}
NUMBERED: list[tuple[str, str, float]] = [("qa", "acc", 0.5), ("qa", "acc_norm", 0.25), ("nli", "acc", 0.75)]
ROWS: list[dict[str, Any]] = [
    {"model": model, "millions": millions, "step": step, "task": task, "metric": metric, "value": value}
    for model, millions in (("a", 10), ("b", 20))
    for step in (0, 500)
    for task, metric, value in (("web", "loss", 3.5 + step / 1000), *NUMBERED)
]


def changed(**changes: Any) -> dict[str, Any]:
    """LONG with other keys in its one table."""
    return {**LONG, "tables": [{**LONG["tables"][0], **changes}]}


def write(rows: list[dict[str, Any]], file: Path) -> Path:
    kind = file.name.partition(".")[2].partition(".")[0]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        content = file.read_bytes()
    elif kind == "jsonl":
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        sign = "\t" if kind == "tsv" else ","
        lines: list[list[Any]] = [names, *([row.get(name) for name in names] for row in rows)]
        content = "".join(sign.join("" if cell is None else str(cell) for cell in line) + "\n" for line in lines).encode()
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(file.suffix)
    file.write_bytes(packed(content) if packed else content)
    return file


def read(path: Path, mapping: dict[str, Any] | None = None) -> Imported:
    return table.read(path, parsed(yaml.safe_dump(mapping or LONG), "m.yaml"))


def rows_of(imported: Imported, name: str) -> list[dict[str, Any]]:
    return imported.rows[name].to_pylist() if name in imported.rows else []


def reasons(imported: Imported) -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in imported.unused:
        found[entry.reason] += entry.count
    return found


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str, packed: str) -> None:
    imported = read(write(ROWS, tmp_path / f"t.{kind}{packed}"))
    assert [(row["run_id"], row["params"], row["size"]) for row in rows_of(imported, "runs")] == [
        ("made-up/a", 10_000_000, "10M"),
        ("made-up/b", 20_000_000, "20M"),
    ]
    assert rows_of(imported, "runs")[0].items() >= {"study": "made-up", "source": "nobody", "licence": "CC0-1.0"}.items()
    assert [(row["checkpoint_id"], row["step"], row["tokens"]) for row in rows_of(imported, "checkpoints")][:2] == [
        ("made-up/a@step0", 0, 0),
        ("made-up/a@step500", 500, 1_024_000),
    ]
    assert [row["value"] for row in rows_of(imported, "losses")] == [3.5, 4.0, 3.5, 4.0]
    scores = {(row["checkpoint_id"], row["task"], row["metric"]): row for row in rows_of(imported, "scores")}
    assert len(scores) == 12
    score = scores["made-up/b@step500", "qa", "acc"]
    assert score.items() >= {"n": 400, "chance": 0.25, "stderr": 0.025, "shots": 5, "higher_is_better": True}.items()
    assert score["engine"] == "published/made-up"
    assert imported.unused == []


def test_the_example_in_the_document_does_what_it_says(tmp_path: Path) -> None:
    content, mapping = (re.search(rf"```{kind}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S) for kind in ("csv", "yaml"))
    assert content and mapping
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "small-1.csv").write_text(content[1], encoding="utf-8")
    (tmp_path / "mapping.yaml").write_text(mapping[1], encoding="utf-8")
    arguments = ["import", "table", str(tmp_path), "--mapping", str(tmp_path / "mapping.yaml"), "--results", str(tmp_path / "results")]
    result = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert result.exit_code == 0
    assert [(row["table"], row["rows"]) for row in json.loads(result.stdout)] == [("losses", 1), ("scores", 1)]
    assert "left out 1: the untrained model" in result.stderr and "left out 1: its value is no number (arc acc)" in result.stderr
    (score,) = Results(tmp_path / "results").query("SELECT * FROM curve").to_pylist()
    wanted = {
        "run_id": "my-table/small-1",
        "seed": 1,
        "params": 124_000_000,
        "step": 1000,
        "tokens": 2_100_000_000,
        "task": "piqa",
        "n": 1838,
    }
    assert score.items() >= wanted.items()
    assert score["value"] == pytest.approx(0.559) and score["stderr"] == pytest.approx(0.012)
    assert score["flops"] == pytest.approx(6 * 124e6 * 2.1e9)


def test_wide_columns_whose_names_tell_task_and_metric(tmp_path: Path) -> None:
    mapping = changed(
        run={"id": {"match": "^(.*)[.]csv", "of": "{file}"}},
        losses=[{"columns": "loss/(?P<set>.*)", "dataset": "{set}", "unit": "bits/byte"}],
        scores=[
            {"columns": "(?P<task>[^/]+)/(?P<metric>acc)", "value": "= value / 100", "task": "{task}", "metric": "{metric}"}
            | {"format": "text", "n": 10, "chance": 0.25, "stderr": "= `{task}/se` / 100"}
        ],
    )
    row = {"step": 1, "loss/web": 1.5, "loss/code": 0.5, "qa/acc": 50, "qa/se": 2, "nli/acc": 70, "nli/se": 4, "lr": 0.1}
    imported = read(write([row], tmp_path / "run-1.csv"), mapping)
    assert [(r["checkpoint_id"], r["dataset"], r["value"]) for r in rows_of(imported, "losses")] == [
        ("made-up/run-1@step1", "code", 0.5),
        ("made-up/run-1@step1", "web", 1.5),
    ]
    assert [(r["task"], r["value"], r["stderr"]) for r in rows_of(imported, "scores")] == [("nli", 0.7, 0.04), ("qa", 0.5, 0.02)]
    assert [(entry.task, entry.reason) for entry in imported.unused] == [("lr", "no part of the mapping takes it")]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "parquet"])
def test_nothing_is_dropped_in_silence(tmp_path: Path, kind: str) -> None:
    """Used and left out add up to what was there, each with its reason; numbers are written as texts."""
    odd: list[dict[str, Any]] = [
        {"value": "much"},
        {"value": "inf"},
        {"task": "unheard"},
        {"metric": "f1"},
        {"step": "late"},
        {"model": None},
        {"step": -1},
    ]
    rows = [*ROWS, *({**ROWS[1], "model": f"m{at}", **change} for at, change in enumerate(odd))]
    rows += [ROWS[1], {**ROWS[2], "value": 0.9}]
    texts = [{name: None if cell is None else str(cell) for name, cell in row.items()} for row in rows]
    imported = read(write(texts, tmp_path / f"t.{kind}"), changed(filters=[{"where": "not (step < 0)", "reason": "before the start"}]))
    assert reasons(imported) == {
        "its value is no number": 1,
        "its value is not finite": 1,
        "its chance level is not known": 1,
        "no part of the mapping takes it": 1,
        "before the start": 2,  # `late` is no number, so it is not known to satisfy the filter
        "its run is not known": 1,
        "another row says the same": 1,
        "another row gives a lower value for the same": 1,
    }
    used = len(rows_of(imported, "losses")) + len(rows_of(imported, "scores"))
    assert used + sum(reasons(imported).values()) == len(rows)
    assert {row["value"] for row in rows_of(imported, "scores") if row["metric"] == "acc_norm"} == {0.25}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n": 0}, "it does not say of how many items it is the mean"),
        ({"chance": "{millions}x"}, "its chance level is not known"),
        ({"stderr": "= 0 - value"}, "it has no standard error"),
        ({"stderr": "= (0 - value) ** 0.5"}, "it has no standard error"),
        ({"format": "essay"}, "its format is none of letter, text, open, pair"),
        ({"higher_is_better": "perhaps"}, "it does not say whether higher is better"),
    ],
)
def test_a_score_without_what_it_needs_is_left_out(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    mapping = changed(scores=[{**LONG["tables"][0]["scores"][0], **change}])
    assert reasons(read(write(ROWS, tmp_path / "t.csv"), mapping)) == {reason: 12}


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_lookup_does_not_hide_columns_of_its_own_names(tmp_path: Path, kind: str) -> None:
    rows = [{"key": "a", "c0": "b", "l": "b", "value": 0.5}, {"key": "b", "c0": "a", "l": "a", "value": 0.5}]
    size = {"table": {"a": "large", "b": "small"}, "of": "{c0}"}
    seed = {"table": {"a": 1, "b": 2}, "of": {"match": "(.)", "of": "{key}"}}
    losses = [{"value": "{value}", "dataset": {"table": {"a": "A", "b": "B"}, "of": "{l}"}, "unit": "nats/token"}]
    run = {"id": "{key}", "size": size, "seed": seed}
    imported = read(write(rows, tmp_path / f"t.{kind}"), changed(run=run, checkpoint={"id": "final"}, losses=losses, scores=[]))
    assert [(row["size"], row["seed"]) for row in rows_of(imported, "runs")] == [("small", 1), ("large", 2)]
    losses = sorted(rows_of(imported, "losses"), key=lambda row: str(row["checkpoint_id"]))
    assert [row["dataset"] for row in losses] == ["B", "A"]


def test_another_delimiter(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("model;step;loss\na;1;2,5\na;2;2.25\n\n", encoding="utf-8")
    losses = [{"value": "{loss}", "dataset": "web", "unit": "nats/token"}]
    imported = read(file, changed(delimiter=";", run={"id": "{model}"}, losses=losses, scores=[]))
    assert [row["value"] for row in rows_of(imported, "losses")] == [2.25]
    assert reasons(imported) == {"its value is no number": 1}


def test_nested_and_late_and_mixed_fields_of_jsonl(tmp_path: Path) -> None:
    rows = [{"model": "a", "step": at, "m": {"acc": 0.5}} for at in range(30_000)]  # more than DuckDB looks at by itself
    rows += [{"model": 7, "step": 30_000, "m": {"acc": 0.5, "deep": {"n": 3}}}, {"model": "b", "step": 1.0, "m": {"acc": float("nan")}}]
    score = {"value": "{m.acc}", "task": "qa", "format": "open", "metric": "acc", "n": ["{m.deep.n}", 10], "chance": 0, "stderr": 0.1}
    imported = read(write(rows, tmp_path / "t.jsonl"), changed(run={"id": "{model}"}, losses=[], scores=[score]))
    found = rows_of(imported, "scores")
    assert {row["checkpoint_id"].partition("@")[0] for row in found} == {"made-up/a", "made-up/7"}
    assert [row["n"] for row in found if row["checkpoint_id"] == "made-up/7@step30000"] == [3]
    assert reasons(imported) == {"its value is not finite": 1}


def test_files_with_other_columns_and_two_tables_of_one_study(tmp_path: Path) -> None:
    write([{"model": "a", "tokens": 5e9, "loss": 2.5}], tmp_path / "losses-1.csv")
    write([{"model": "b", "seen": 6e9, "loss": 2.25}], tmp_path / "losses-2.csv.gz")
    write([{"model": "a", "acc": 0.5}, {"model": "b", "acc": 0.6}], tmp_path / "acc.parquet")
    write([{"model": "a"}], tmp_path / "else.csv")
    score = {"value": "{acc}", "task": "qa", "format": "text", "metric": "acc", "n": 10, "chance": 0.5, "stderr": 0.1}
    checkpoint = {"id": "final", "tokens": ["{tokens}", "{seen}"]}
    losses = [{"value": "{loss}", "dataset": "web", "unit": "nats/token"}]
    sheets = [
        {"files": "losses*", "run": {"id": "{model}"}, "checkpoint": checkpoint, "losses": losses},
        {"files": ["*.parquet"], "run": {"id": "{model}"}, "checkpoint": {"id": "final"}, "scores": [score]},
    ]
    imported = read(tmp_path, {"study": "s", "tables": sheets})
    assert [(row["checkpoint_id"], row["tokens"]) for row in rows_of(imported, "checkpoints")] == [
        ("s/a@final", 5_000_000_000),
        ("s/b@final", 6_000_000_000),
    ]
    assert len(rows_of(imported, "losses")) == len(rows_of(imported, "scores")) == 2
    assert imported.files == 3 and [entry.task for entry in imported.unused] == ["else.csv"]


def test_names_are_never_sql(tmp_path: Path) -> None:
    name = "a\"b'); DROP TABLE base; --"
    file = tmp_path / "it's [1].csv"
    file.write_text('"a""b\'); DROP TABLE base; --",step,ACC,acc\n0.5,1,2,3\n', encoding="utf-8")
    losses = [
        {"value": f"= `{name}` + 0", "dataset": "it's", "unit": "nats/token"},
        {"value": "{acc}", "dataset": "b", "unit": "nats/token"},
    ]
    found = rows_of(read(file, changed(run={"id": "{file}"}, losses=losses, scores=[])), "losses")
    assert [(row["dataset"], row["value"]) for row in found] == [("b", 3.0), ("it's", 0.5)]
    assert found[0]["checkpoint_id"] == "made-up/it's [1].csv@step1"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"model,model\n1,2\n", "two columns `model`"),
        (b"model,step,metric,task,value,millions\na,1\n", "Expected Number of Columns"),
        (b"model,step\na,1\n", "names the column `millions`, which t.csv does not have"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_table_that_is_damaged(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(complaint)) as caught:
        read(tmp_path / "t.csv")
    assert caught.value.remedy and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["csv.gz", "csv.zst", "parquet", "parquet.gz", "jsonl.gz", "jsonl"])
def test_a_file_that_is_cut_short(tmp_path: Path, kind: str) -> None:
    file = write(ROWS * 50, tmp_path / f"t.{kind}")
    file.write_bytes(file.read_bytes()[:-15])
    with pytest.raises(UserError, match=r"t\..* cannot be read"):
        read(file)


def test_a_run_that_is_described_in_two_ways(tmp_path: Path) -> None:
    file = write([*ROWS, {**ROWS[0], "millions": 11, "step": 9}], tmp_path / "t.csv")
    with pytest.raises(UserError, match="made-up/a has two values of params: 10000000 and 11000000"):
        read(file, changed(run={"id": "{model}", "params": "= millions * 1e6"}))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"losses": [], "scores": []}, "neither `losses` nor `scores`"),
        ({"run": {}}, "`tables[0].run` has no key `id`"),
        ({"run": {"id": "x", "parms": 1}}, "unknown key `tables[0].run.parms`"),
        ({"fils": "*"}, "unknown key `tables[0].fils`"),
        ({"files": "../*"}, "leaves the directory"),
        ({"filters": [{"where": "step + 1"}]}, "is no condition"),
        ({"filters": [{"where": "step = 1"}]}, "write `==`"),
        ({"filters": [{"were": "step == 1"}]}, "unknown key"),
        ({"columns": {"x": "= 1 +"}}, "ends where a value should be"),
        ({"columns": {"x": "= __import__('os')"}}, "where it should end"),
        ({"columns": {"x": "a } b"}}, "brace"),
        ({"columns": {"x": {"match": "(", "of": "a"}}}, "no regular expression"),
        ({"columns": {"x": {"match": "(?=a)", "of": "a"}}}, "RE2"),
        ({"columns": {"x": {"table": "none", "of": "a"}}}, "names the lookup `none`"),
        ({"columns": {"x": {"table": {"a": {"b": 1}}, "of": "a", "take": "c"}}}, "takes `c`"),
        ({"columns": {"x": {"table": {"a": 10**400}, "of": "a"}}}, "neither a number nor a text"),
        ({"columns": {"x": {"sum": "a"}}}, "is neither"),
        ({"columns": {"x": None}}, "is empty"),
        ({"columns": {"x": 1e999}}, "no finite number"),
        ({"losses": [{"value": 1, "unit": "nats/token"}]}, "has no key `dataset`"),
        ({"scores": [{"columns": "a(", "task": "t"}]}, "no regular expression"),
    ],
)
def test_a_mapping_that_is_wrong(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(yaml.safe_dump(changed(**change)), "m.yaml")
    assert complaint in str(caught.value) and str(caught.value).startswith("m.yaml") and caught.value.remedy


@pytest.mark.parametrize("text", ["", "[]", "study: x", "study: [", "a: 1\na: 2", "study: 2020-99-99", "&a [*a]", "? [a]\n: 1", "\x00"])
def test_a_file_that_is_no_mapping(text: str) -> None:
    with pytest.raises(UserError, match=r"m\.yaml"):
        parsed(text, "m.yaml")


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["{step}", "= step", "= ((", "{", "step > 0"]),
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["match", "of", "table", "take", "columns", "where", "value", "id", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from(["files", "columns", "filters", "unused", "run", "checkpoint", "losses", "scores", "delimiter"]), value=ANYTHING)
def test_any_mapping_builds_or_is_refused(key: str, value: Any) -> None:
    try:
        parsed(yaml.safe_dump(changed(**{key: value})), "m.yaml")
    except UserError as error:
        complaint = str(error)
    else:
        complaint = "m.yaml"
    assert complaint.startswith("m.yaml")


def test_importing_twice_adds_nothing_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    mapping, results = tmp_path / "m.yaml", tmp_path / "results"
    mapping.write_text(yaml.safe_dump(LONG), encoding="utf-8")
    good, bad = write(ROWS * 500, tmp_path / "good.csv"), write(ROWS, tmp_path / "bad.csv.gz")
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(UserError):
        import_results("table", tmp_path, results, mapping)
    with pytest.raises(UserError, match="can be used"):
        import_results("table", write([{**ROWS[0], "metric": "f1"}], tmp_path / "none.csv"), results, mapping)
    assert not results.exists()
    written = []
    for _ in range(2):
        import_results("table", good, results, mapping)
        written.append(sorted(results.rglob("*.parquet")))
    assert written[0] == written[1] and len(written[0]) == 4


@pytest.mark.parametrize(
    "arguments", [["table", "."], ["pythia", ".", "--mapping", "m.yaml"], ["table", "no-such", "--mapping", "no-such"]]
)
def test_wrong_arguments_are_told_in_a_sentence(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["import", *arguments])
    assert result.exit_code == 2 and "Traceback" not in result.stderr


def test_every_bundled_mapping_reads() -> None:
    assert bundled() == ["gadre", "olmo-ladder", "pythia"]
    assert all(read_bundled(name).study == name for name in bundled())
