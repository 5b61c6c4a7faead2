"""Compaction: what is merged, that no row is lost or shown twice wherever it is killed or met by another, and older layouts."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from losslens.errors import DataMismatch, LosslensError, UserError
from losslens.results import Results, compaction, layout, parts
from losslens.results.compaction import Part, batches
from losslens.results.places import Folder
from losslens.results.tables import SAMPLES, TABLES

SCORE = {
    "task_version": 1, "format": "open", "shots": 0, "metric": "exact_match", "stderr": 0.01, "n": 100, "chance": 0.0,
    "higher_is_better": True, "engine": "torch", "scored_at": datetime(2026, 1, 1, tzinfo=UTC),
}  # fmt: skip
NOW = layout.LAYOUT


def score(checkpoint: str, task: str, value: float, **other: Any) -> dict[str, Any]:
    return {**SCORE, "checkpoint_id": checkpoint, "task": task, "value": value, **other}


def some_scores(results: Results) -> list[dict[str, Any]]:
    """Five parts: tasks mixed, one row in two parts, one key scored twice; what view `scores` says of them."""
    for checkpoint in ("a", "b", "c"):
        results.write("scores", [score(checkpoint, task, 0.5) for task in ("sort", "copy")])
    results.write("scores", [score("a", "sort", 0.5), score("d", "add", 0.25)])
    results.write("scores", [score("b", "copy", 0.75, scored_at=datetime(2025, 1, 1, tzinfo=UTC))])
    return shown(results)


def shown(results: Results) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = results.query("SELECT * FROM scores ORDER BY ALL").to_pylist()
    return rows


def names(results: Results, table: str = "scores") -> set[str]:
    return {path.name for path in parts.listed(results.root, table)}


@pytest.mark.parametrize(
    ("found", "merged"),
    [
        ([], []),
        ([("a", 10, NOW)], []),  # alone there is nothing to merge it with
        ([("a", 10, NOW - 1)], [["a"]]),  # but an older layout is brought up
        ([("b", 10, NOW), ("a", 10, NOW)], [["a", "b"]]),
        ([("a", 50, NOW), ("b", 49, NOW), ("c", 49, NOW)], [["b", "c"]]),  # half full is large enough
        ([("a", 100, NOW - 1), ("b", 10, NOW), ("c", 10, NOW)], [["a"], ["b", "c"]]),
        ([("a", 40, NOW), ("b", 40, NOW), ("c", 40, NOW), ("d", 40, NOW), ("e", 40, NOW)], [["a", "b"], ["c", "d"]]),
    ],
)
def test_small_and_older_parts_are_merged_up_to_a_size(found: list[tuple[str, int, int]], merged: list[list[str]]) -> None:
    assert [[part.name for part in group] for group in batches((Part(*part) for part in found), full=100)] == merged


def test_many_parts_become_one_sorted_by_task_and_every_answer_stays(tmp_path: Path) -> None:
    results = Results(tmp_path)
    expected = some_scores(results)
    before = names(results)
    (did,) = [table for table in results.compact() if table.table == "scores"]
    assert (did.merged, did.into, did.rows, did.removed) == (5, 1, 8, 0)
    (merged,) = names(results) - before
    assert names(results) > before, "readers that have listed the old parts still find them"
    assert shown(results) == expected
    assert [table for table in results.compact() if table.merged or table.removed] == [], "twice does nothing"
    (did,) = [table for table in results.compact(grace=0) if table.table == "scores"]
    assert did.removed == 5 and names(results) == {merged}
    assert shown(results) == expected
    stored = pq.read_table(tmp_path / "parts" / "scores" / merged).to_pylist()
    assert [row["task"] for row in stored] == sorted(row["task"] for row in stored)
    assert len(stored) == 8, "the row that was there twice is there once; that one key was scored twice is kept"
    assert not list((tmp_path / "parts" / "scores").glob(".*")) and not list(tmp_path.glob(".tmp-*"))


def test_merged_parts_are_merged_again_with_later_ones(tmp_path: Path) -> None:
    results = Results(tmp_path)
    some_scores(results)
    for generation in (1, 2, 3):
        results.compact(grace=0)
        results.compact(grace=0)
        (name,) = names(results)
        assert name.startswith(f"g{generation}-")
        results.write("scores", [score(f"later{generation}", "sort", 0.1)])
    assert results.query("SELECT count(*) AS n, count(DISTINCT checkpoint_id) AS c FROM scores").to_pylist() == [{"n": 10, "c": 7}]


def test_parts_of_others_are_left_alone(tmp_path: Path) -> None:
    results = Results(tmp_path)
    expected = some_scores(results)
    for path in parts.listed(tmp_path, "scores")[:2]:
        path.rename(path.with_name(f"theirs-{path.stem[:4]}.parquet"))
    results.compact()
    results.compact(grace=0)
    assert sorted(name[:6] for name in names(results))[1:] == ["theirs", "theirs"]
    assert shown(results) == expected


def test_a_damaged_part_is_named_and_nothing_of_its_table_changes(tmp_path: Path) -> None:
    results = Results(tmp_path)
    some_scores(results)
    part = parts.listed(tmp_path, "scores")[2]
    whole = part.read_bytes()
    for damaged in (whole[:-9], whole[:4] + b"\0" * 200 + whole[204:]):
        part.write_bytes(damaged)
        with pytest.raises(DataMismatch, match=part.name):
            results.compact(grace=0)
        assert len(names(results)) == 5 and not list(tmp_path.glob("parts/scores/.*"))


def test_parts_stay_when_what_replaced_them_is_not_as_it_was_written(tmp_path: Path) -> None:
    results = Results(tmp_path)
    expected = some_scores(results)
    before = names(results)
    results.compact()
    (merged,) = names(results) - before
    (tmp_path / "parts" / "scores" / merged).unlink()
    results.compact(grace=0)
    assert names(results) == before and shown(results) == expected
    for _ in range(2):
        results.compact(grace=0)
    assert len(names(results)) == 1 and shown(results) == expected


class Killed(BaseException):
    """No more is done after it, not even tidying up."""


@contextmanager
def at_step(number: int, then: Callable[[], None]) -> Iterator[list[str]]:
    """`then` runs before step `number` of those that change the disk; which steps there were."""
    taken: list[str] = []

    def step(name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            taken.append(name)
            if len(taken) > number:
                then()
            return do(*given, **named)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (compaction, "remove"), (pq, "ParquetWriter")):
            patch.setattr(module, name, step(name, getattr(module, name)))
        yield taken


def copied(source: Path, target: Path) -> Results:
    shutil.copytree(source, target)
    return Results(target)


def settled(results: Results, expected: list[dict[str, Any]]) -> None:
    """Further compactions end with one part and the same answers."""
    for _ in range(3):
        assert shown(results) == expected
        results.compact(grace=0)
    assert shown(results) == expected
    assert len(names(results)) == 1 and not list(results.root.glob("parts/scores/.replaced-*"))


def test_wherever_it_is_killed_no_row_is_lost_or_shown_twice(tmp_path: Path) -> None:
    def die() -> None:
        raise Killed

    expected = some_scores(Results(tmp_path / "made"))
    seen: set[str] = set()
    for number in itertools.count():
        results = copied(tmp_path / "made", tmp_path / f"killed{number}")
        with at_step(number, die) as taken:
            try:
                results.compact(grace=0)
            except Killed:
                seen |= set(taken)
                assert len(taken) > number
            else:
                break
        settled(results, expected)
    assert number > 10 and seen == {"replace", "fsync", "rmtree", "remove", "ParquetWriter"}


def test_two_compactors_at_once_lose_nothing(tmp_path: Path) -> None:
    """The other does all of its work, removals included, between any two steps of the first, after a write that only it sees."""
    some_scores(Results(tmp_path / "made"))
    expected = Results(tmp_path / "made")
    later = score("later", "sort", 0.125)
    for number in itertools.count():
        results = copied(tmp_path / "made", tmp_path / f"met{number}")

        def meet(results: Results = results, number: int = number) -> None:
            if not (results.root / "met").exists():
                (results.root / "met").touch()
                results.write("scores", [later])
                for _ in range(2):
                    results.compact(grace=0)

        with at_step(number, meet), suppress(LosslensError):  # what it was reading may be gone
            results.compact(grace=0)
        if not (results.root / "met").exists():
            break
        settled(results, sorted([*shown(expected), later], key=lambda row: (row["checkpoint_id"], row["task"])))
    assert number > 10


def test_a_newer_layout_is_refused_in_one_sentence(tmp_path: Path) -> None:
    results = Results(tmp_path)
    some_scores(results)
    (tmp_path / "parts" / f"layout-{NOW + 1}").touch()
    for attempt in (lambda: results.query("SELECT 1"), lambda: results.write("scores", [score("x", "t", 1.0)]), results.compact):
        with pytest.raises(UserError, match=f"newer losslens: its layout is {NOW + 1}, and this one knows {NOW}") as caught:
            attempt()
        assert "Install" in caught.value.remedy
    assert len(names(results)) == 5


def sample(checkpoint: str, item: str, **other: Any) -> dict[str, Any]:
    return {"checkpoint_id": checkpoint, "task": "sort", "task_version": 1, "format": "open", "shots": 0, "item_id": item, **other}


def of_layout_1(root: Path, table: str, rows: list[dict[str, Any]], without: tuple[str, ...], number: int) -> None:
    """A part as it was before parts told their layout: some columns did not exist."""
    whole = parts.conform(table, rows).drop_columns(list(without)).replace_schema_metadata(None)
    (root / "parts" / table).mkdir(parents=True, exist_ok=True)
    pq.write_table(whole, root / "parts" / table / f"{number:032x}.parquet")


def test_results_of_layout_1_are_read_as_they_are_and_brought_up(tmp_path: Path) -> None:
    of_layout_1(tmp_path, "samples", [sample("a", "1"), sample("b", "1"), sample("c", "1")], ("engine", "scored_bytes"), 1)
    of_layout_1(tmp_path, "losses", [{"checkpoint_id": "a", "dataset": "d", "unit": "nats/token", "value": 2.0}], ("method",), 2)
    both = [score("b", "sort", 1.0), score("b", "sort", 1.0, engine="vllm")]
    of_layout_1(tmp_path, "scores", [score("a", "sort", 1.0), score("a", "sort", 1.0, metric="brier"), *both], (), 3)
    results = Results(tmp_path)
    told = "SELECT checkpoint_id, engine FROM samples ORDER BY ALL"
    assert [row["engine"] for row in results.query(told).to_pylist()] == [None] * 3
    for _ in range(2):
        results.compact(grace=0)
    assert [row["engine"] for row in results.query(told).to_pylist()] == ["torch", None, None], "b has two engines, c no score"
    assert results.query("SELECT value, method FROM losses").to_pylist() == [{"value": 2.0, "method": None}]
    for path in (path for table in TABLES for path in parts.listed(tmp_path, table)):
        metadata = pq.read_metadata(path)
        assert layout.number(metadata.metadata) == NOW
        assert metadata.schema.names == TABLES[path.parent.name].names
    assert layout.require_known(results.place) == NOW
    assert [table for table in results.compact(grace=0) if table.merged or table.removed] == []


def test_an_empty_place_gets_the_present_layout(tmp_path: Path) -> None:
    assert layout.require_known(Folder(tmp_path)) == 1
    Results(tmp_path).write("samples", [sample("a", "1", engine="torch")])
    assert layout.require_known(Folder(tmp_path)) == NOW
    (part,) = parts.listed(tmp_path, "samples")
    assert layout.number(pq.read_metadata(part).metadata) == NOW
    assert pq.read_schema(part).names == SAMPLES.names
    with pytest.raises(UserError, match="holds no results"):
        Results(tmp_path / "nowhere").compact()


def test_every_layout_since_the_first_has_its_steps() -> None:
    found = sorted(path.name for path in (Path(layout.__file__).parent / "sql" / "migrations").iterdir())
    assert {int(name[:3]) for name in found} == set(range(2, NOW + 1))
    assert all(name[4:].removesuffix(".sql") in TABLES for name in found)
    assert layout.steps("samples", 1) and not layout.steps("samples", NOW)
