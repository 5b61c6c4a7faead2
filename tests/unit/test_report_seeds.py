"""Scores of several seeds at equal loss, and one task under all its metrics: what the report computes for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from losslens.report.gather import gather
from losslens.report.metrics import metric_table
from losslens.report.seeds import LEVELS, at_equal_loss, luck, several_seeds
from losslens.report.study import Checkpoint, Crossing, Curve, LossAxis, Panel, Size, Study
from losslens.results import Results
from tests.synthetic import ANSWERED, TASKS, write_study

RUN: dict[str, Any] = {"size": "a", "tokens_planned": 100, "seed": 0}


def two_seeds(late: float) -> Study:
    """Loss 4, 3, 2, 1; the first seed rises from 0 to 1 between losses 3 and 2, the second between `late` and the loss after it."""
    losses = [4.0, 3.0, 2.0, 1.0]
    scores = [0.0, 0.0, 1.0, 1.0] + [0.0 if loss >= late else 1.0 for loss in losses]
    curve = Curve("acc", True, (0.0, 0.0), scores, [0.01] * 8, [100] * 8)
    crossings = (Crossing(0, 2.0, None, None, 1.0), Crossing(1, late - 1, None, None, 1.0))
    panel = Panel("task", "open", 0, (curve,), 0, 0.5, crossings)
    axis = LossAxis("heldout", "nats/token", losses * 2)
    runs = (RUN | {"run_id": "r0"}, RUN | {"run_id": "r1", "seed": 1})
    checkpoints = tuple(Checkpoint(run, step, step, None) for run in range(2) for step in range(4))
    return Study("s", (Size("a", 1, 0),), runs, checkpoints, (axis,), axis, (panel,), ())


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([RUN, RUN | {"seed": 1}], [0, 1]),
        ([RUN, RUN], []),  # the same seed twice is one
        ([RUN, RUN | {"seed": None}], []),
        ([RUN, RUN | {"seed": 1, "size": "b"}], []),
        ([RUN, RUN | {"seed": 1, "tokens_planned": 200}], []),
        ([RUN, RUN | {"size": "b"}, RUN | {"seed": 2}], [0, 2]),
    ],
)
def test_runs_that_differ_in_their_seed_only(runs: list[dict[str, Any]], expected: list[int]) -> None:
    assert several_seeds(runs) == expected


def test_scores_at_equal_loss_lie_on_the_line_between_checkpoints() -> None:
    study = two_seeds(late=2.0)
    found = at_equal_loss(study, study.panels[0])
    assert found is not None
    assert found.runs == (0, 1)
    assert len(found.losses) <= LEVELS
    assert list(found.losses) == sorted(found.losses, reverse=True)
    for loss, early, late in zip(found.losses, *found.values, strict=True):
        assert early == pytest.approx(min(max(3.0 - loss, 0), 1))
        assert late == pytest.approx(min(max(2.0 - loss, 0), 1))
    assert luck(study, study.panels[0], found) == (
        "The seeds of a differ most at loss 1.917: 2 of 2 are clearly above chance there, with scores from 0.08 to 1.00."
    )


def test_no_seeds_where_one_rises() -> None:
    study = two_seeds(late=2.0)
    panel = study.panels[0]
    one = Panel("task", "open", 0, panel.curves, 0, 0.5, panel.crossings[:1])
    assert at_equal_loss(study, one) is None


def test_levels_that_only_one_seed_reached_are_left_out(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=3, tasks=TASKS[:3])
    (study,) = gather(Results(tmp_path))
    for panel in study.panels:
        found = at_equal_loss(study, panel)
        assert found is not None
        assert all(sum(values[i] is not None for values in found.values) > 1 for i in range(len(found.losses)))


def test_a_task_under_all_its_metrics(tmp_path: Path) -> None:
    write_study(tmp_path, tasks=(*TASKS[:1], *ANSWERED[:1]))
    results = Results(tmp_path)
    (study,) = gather(results)
    assert metric_table(study, [0, 1]) is None  # one verdict a task
    columns = "'correct_choice_prob' AS metric, 1.5 AS eta, 1.4 AS eta_low, 1.6 AS eta_high"
    results.write("thresholds", results.query(f"SELECT * REPLACE ({columns}) FROM thresholds WHERE task = 'exam'"))
    (study,) = gather(results)
    table = metric_table(study, [1, 0])
    assert table is not None
    assert table.metrics == ("acc", "exact_match", "correct_choice_prob")
    (exam,) = table.tasks
    assert study.panels[exam.panel].task == "exam"
    assert (exam.stays, exam.reason) == ("no", "acc has it above 1.85, correct_choice_prob below 1.6")
    assert [row and row["eta"] for row in exam.rows] == [1.9, None, 1.5]


def test_metrics_of_stored_answers_are_shown_once_they_are_judged(tmp_path: Path) -> None:
    write_study(tmp_path, tasks=ANSWERED[1:])
    results = Results(tmp_path)
    assert [curve.metric for curve in gather(results)[0].panels[0].curves] == ["bits_per_byte", "exact_match"]
    results.write("thresholds", results.query("SELECT * REPLACE ('token_prob' AS metric) FROM thresholds"))
    curves = {curve.metric: curve for curve in gather(results)[0].panels[0].curves}
    assert list(curves) == ["bits_per_byte", "exact_match", "token_prob"]
    assert curves["token_prob"].n == (80, 80)


def test_what_tells_runs_apart(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=2, tasks=())
    (study,) = gather(Results(tmp_path))
    assert {group.by: group.names for group in study.groups} == {"size": ("d48", "d64", "d96", "d160"), "seed": ("0", "1")}
    assert [study.runs[i]["seed"] for i in range(8)] == [int(study.groups[1].names[k]) for k in study.groups[1].of]
