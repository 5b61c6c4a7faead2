"""What `losslens status` says: of runs by their records, of the cluster by the view that a running job leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster_view import FILE, OLD, counts, read_view
from jobs.status import CLUSTER, describe, headline, status
from losslens.cluster.slots import EVAL, TRAIN
from losslens.errors import UserError
from tests.conftest import Process

RUN = {"run_id": "r", "study": "s", "tokens_planned": 100}
HALF = RUN | {"tokens": 50, "checkpoints": 3, "scored": 1}
WHOLE = RUN | {"tokens": 100, "checkpoints": 3, "scored": 1}
PROGRESS = {"loss": 2.5, "tokens_per_second": 7.0, "world_size": 2, "attempt": 3, "time": "2026-01-01T00:00:00+00:00"}
VIEW = counts([({TRAIN: 2, EVAL: 1}, False), ({TRAIN: 1}, True), ({"CPU": 2}, False)], {TRAIN: 1}, [({TRAIN: 1, "CPU": 1}, 2)], 1)


def test_counts_of_a_cluster() -> None:
    assert VIEW == {
        "nodes": 3, "nodes_draining": 1, "nodes_pending": 1,
        "train_slots": 3, "train_slots_used": 2, "train_slots_pending": 2,
        "eval_slots": 1, "eval_slots_used": 1, "eval_slots_pending": 0,
    }  # fmt: skip
    assert counts([({"CPU": 2}, False)], {"CPU": 2.0, EVAL: 1}, [({EVAL: 1}, 2)], 0)["eval_slots_used"] == 0  # a node that just left


def group(state: str, why: str = "") -> dict[str, Any]:
    return {"state": state, "world_size": 1, "share": 2, "why": why}


@pytest.mark.parametrize(
    ("run", "progress", "workers", "view", "expected"),
    [
        (RUN, {}, {}, VIEW, ("waiting", "a free train slot", None, None)),
        (RUN, {}, {}, None, ("waiting", None, None, None)),
        (RUN, {}, group("waiting", "2 workers at least, 1 slot"), VIEW, ("waiting", "2 workers at least, 1 slot", 1, 2)),
        (RUN, {}, group("starting"), VIEW, ("waiting", None, 1, 2)),
        (HALF, PROGRESS, group("running"), VIEW, ("training", None, 1, 2)),
        (HALF, PROGRESS, group("saving", "a node joins"), VIEW, ("training", None, 1, 2)),
        (HALF, PROGRESS, group("waiting", "no node"), VIEW, ("waiting", "no node", 1, 2)),
        (HALF, PROGRESS, group("waiting", "no node"), None, ("stopped", None, 2, None)),  # what a dead driver left is not believed
        (WHOLE, PROGRESS, group("ended"), VIEW, ("trained", None, 1, 2)),
        (WHOLE, PROGRESS, {}, VIEW | {"eval_slots_used": 0, "eval_slots_pending": 1}, ("trained", "a free eval slot", 2, None)),
        (WHOLE | {"scored": 3}, PROGRESS, {}, VIEW, ("scored", None, 2, None)),
    ],
)
def test_a_run_and_why_it_waits(
    run: dict[str, Any], progress: dict[str, Any], workers: dict[str, Any], view: dict[str, Any] | None, expected: tuple[object, ...]
) -> None:
    row = describe(run, progress, workers, view)
    assert (row["state"], row["waits_for"], row["world_size"], row["share"]) == expected
    assert row["attempt"] == progress.get("attempt")
    assert [row[name] for name in CLUSTER] == ([view[name] for name in CLUSTER] if view else [None] * len(CLUSTER))


def test_a_slow_worker_is_named_while_the_run_trains() -> None:
    slow = PROGRESS | {"slow": {"rank": 3, "host": "n2", "seconds": 0.5, "median": 0.1}}
    assert describe(HALF, slow, group("running"), VIEW)["slow"] == "rank 3 on n2: 5.0 x"
    assert describe(HALF, PROGRESS, group("running"), VIEW)["slow"] is None
    assert describe(HALF, slow, group("ended"), None)["slow"] is None


def leave_view(results: Path, age: timedelta, **more: object) -> None:
    results.mkdir(exist_ok=True)
    (results / FILE).write_text(json.dumps(VIEW | {"time": (datetime.now(UTC) - age).isoformat()} | more))


def test_an_old_view_is_of_a_job_that_no_longer_runs(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    assert read_view(tmp_path, now) is None
    leave_view(tmp_path, timedelta())
    assert read_view(tmp_path, now)
    assert headline(tmp_path) == (
        "cluster: 3 nodes (1 draining, 1 on their way), 2 of 3 train slots used (2 more asked for), 1 of 1 eval slots used"
    )
    leave_view(tmp_path, OLD)
    assert read_view(tmp_path, now + timedelta(seconds=1)) is None
    assert headline(tmp_path) == "cluster: no job runs here"
    (tmp_path / FILE).write_text("{")
    assert read_view(tmp_path, now) is None


def test_runs_that_have_not_begun_are_shown_while_a_job_runs(tmp_path: Path) -> None:
    leave_view(tmp_path, timedelta(), runs=[RUN | {"size": "m", "seed": 0}])
    (row,) = status(tmp_path)
    assert (row["run"], row["state"], row["waits_for"]) == ("r", "waiting", "a free train slot")
    leave_view(tmp_path, 2 * OLD)
    with pytest.raises(UserError, match="holds no results"):
        status(tmp_path)


def test_the_command_line_shows_the_cluster_above_the_runs(tmp_path: Path, losslens: Callable[..., Process]) -> None:
    leave_view(tmp_path, timedelta(), runs=[RUN | {"size": "m", "seed": 0}])
    table = losslens("status", "--results", tmp_path)
    assert "3 nodes (1 draining" in table.stderr
    assert "a free train slot" in table.stdout
    (row,) = json.loads(losslens("status", "--results", tmp_path, "--format", "json").stdout)
    assert (row["train_slots"], row["train_slots_used"], row["nodes"], row["nodes_draining"]) == (3, 2, 3, 1)
