"""Results in object storage: the same answers as from a directory, and what a bucket cannot do is said."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from losslens.errors import DataMismatch, EnvironmentFailure, LosslensError, UserError
from losslens.results import Results
from losslens.results.places import Bucket, listing, place
from tests.conftest import Process
from tests.object_storage import object_storage

SCORE = {
    "task_version": 1, "format": "open", "shots": 0, "metric": "acc", "stderr": 0.01, "n": 9, "chance": 0.0,
    "higher_is_better": True, "engine": "torch",
}  # fmt: skip


@pytest.fixture(scope="module")
def storage(environment: dict[str, str]) -> Iterator[str]:
    with object_storage(environment) as address:
        yield address


@pytest.fixture
def root(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> str:
    """A prefix that is empty, in a bucket of its own."""
    for name, value in {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(environment, name, value)
    bucket = tmp_path.name.replace("_", "-").lower()
    filled = fs.S3FileSystem(
        access_key="testing", secret_key="testing", endpoint_override=storage, scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    filled.create_dir(bucket)
    return f"s3://{bucket}/some/prefix?endpoint_override={storage}&scheme=http&region=us-east-1"


def fill(results: Results, runs: int = 3) -> None:
    for run in (f"r{number}" for number in range(runs)):
        results.write("runs", [{"run_id": run, "study": "s", "size": "1M", "params": 1}])
        results.write("checkpoints", [{"checkpoint_id": f"{run}/{k}", "run_id": run, "step": k, "tokens": k * 10} for k in (1, 2)])
        losses = [{"checkpoint_id": f"{run}/{k}", "dataset": "heldout", "unit": "nats/token", "value": 3.0 - k / 2} for k in (1, 2)]
        results.write("losses", losses)
        for task in ("sort", "copy"):
            results.write("scores", [SCORE | {"checkpoint_id": f"{run}/{k}", "task": task, "value": k / 3} for k in (1, 2)])


ASKED = (
    "SELECT * FROM curve WHERE task = 'sort' ORDER BY ALL",
    "SELECT task, count(*), max(value), max(loss) FROM curve GROUP BY ALL ORDER BY ALL",
    "FROM crossings('copy', 'acc', 0.5) ORDER BY ALL",
    "FROM at_loss('copy', 'acc', 2.25)",
    "FROM samples",
    "SELECT run_id, study FROM runs WHERE run_id IN ('r1', 'r2') ORDER BY ALL",
)


def test_a_bucket_answers_as_a_directory_does_before_and_after_compaction(root: str, tmp_path: Path) -> None:
    remote, local = Results(root), Results(tmp_path / "local")
    for results in (remote, local):
        fill(results)
    fill(remote)  # equal rows written again add nothing
    assert len(listing(remote.place, "parts/scores")) == 6
    for sql in ASKED:
        assert remote.query(sql) == local.query(sql), sql
    assert remote.curve(task="sort", study="s") == local.curve(task="sort", study="s")
    did = {table.table: (table.merged, table.into, table.rows) for table in remote.compact()}
    assert did["scores"] == (6, 1, 12) and did["samples"] == (0, 0, 0)
    assert [remote.query(sql) for sql in ASKED] == [local.query(sql) for sql in ASKED]
    assert sum(table.removed for table in remote.compact(grace=0)) == 15
    assert len(listing(remote.place, "parts/scores")) == 1
    assert [remote.query(sql) for sql in ASKED] == [local.query(sql) for sql in ASKED]
    remote.refresh()  # a bucket gets no results.duckdb
    assert {entry.name for entry in listing(remote.place, "")} == set()


def test_results_in_a_bucket_go_to_another_process(root: str) -> None:
    results = Results(root)
    fill(results, runs=1)
    again: Results = pickle.loads(pickle.dumps(results))
    assert again.query("SELECT count(*) AS n FROM scores").to_pylist() == [{"n": 4}]
    assert str(again) == root.partition("?")[0] and "testing" not in str(again)
    with pytest.raises(UserError, match="is no directory"):
        _ = again.root


def test_the_command_line_takes_a_bucket(root: str, losslens: Callable[..., Process]) -> None:
    fill(Results(root))
    shown = losslens("sql", "SELECT count(*) AS n FROM curve", "--results", root, "--format", "csv")
    assert (shown.returncode, shown.stdout.split()) == (0, ["n", "12"]), shown.stderr
    merged = losslens("compact", "--results", root, "--format", "json")
    assert merged.returncode == 0 and '"merged": 6' in merged.stdout, merged.stderr


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"not parquet"])
def test_a_damaged_part_is_named(root: str, damage: Callable[[bytes], bytes]) -> None:
    results = Results(root)
    fill(results, runs=1)
    part = listing(results.place, "parts/scores")[0].name
    path = results.place.at(f"parts/scores/{part}")
    with results.place.files.open_input_file(path) as file:
        content = file.read()
    with results.place.files.open_output_stream(path) as stream:
        stream.write(damage(content))
    for attempt in (lambda: results.query("FROM scores"), lambda: results.compact(), lambda: fill(results, runs=1)):
        with pytest.raises(DataMismatch, match=part) as caught:
            attempt()
        assert "\n" not in str(caught.value) and caught.value.remedy


def test_what_is_wrong_is_one_sentence(root: str, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = root.partition("?")[2]
    wrong: list[tuple[str, type[LosslensError], str]] = [
        (root, UserError, "holds no results"),
        (f"s3://no-such-bucket/x?{options}", UserError, "holds no results"),
        ("s3://bucket/x?colour=red", UserError, "cannot be opened"),
    ]
    for uri, kind, said in wrong:
        with pytest.raises(kind, match=said) as caught:
            Results(uri).query("SELECT 1")
        assert "\n" not in str(caught.value) and caught.value.remedy
    with pytest.raises(EnvironmentFailure, match="cannot be reached or written"):
        Results(f"s3://no-such-bucket/x?{options}").write("train_log", [{"run_id": "r", "step": 1}])
    Results(root).write("train_log", [{"run_id": "r", "step": 1}])
    results = Results(root)
    results.place.put("parts/layout-9", b"")
    with pytest.raises(UserError, match="newer losslens"):
        results.query("SELECT 1")


def test_a_path_that_lost_a_slash_still_means_the_bucket() -> None:
    assert place(Path("s3://bucket/prefix")) == Bucket("s3://bucket/prefix") == place("s3://bucket/prefix")


def test_a_file_that_cannot_be_read_leaves_nothing(root: str, tmp_path: Path) -> None:
    results = Results(root)
    with pytest.raises(EnvironmentFailure):
        results.place.put("parts/scores/x.parquet", tmp_path / "gone.parquet")
    assert listing(results.place, "parts/scores") == []
