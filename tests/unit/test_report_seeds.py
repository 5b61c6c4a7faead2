"""What the report says of seeds, of runs that were compared, and of one task under all its metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from losslens.report import write_report
from losslens.report.gather import gather
from losslens.report.metrics import metric_table
from losslens.report.payload import plain
from losslens.report.seeds import luck, probability
from losslens.report.study import Curve, Panel, Study
from losslens.report.words import comparisons
from losslens.results import Results
from tests.synthetic import ANSWERED, NOW, TASKS, write_study, write_tuned

COMPARED: dict[str, Any] = {
    "study": "synthetic", "task": "skill_copy", "format": "open", "shots": 0, "metric": "exact_match", "loss_dataset": "heldout",
    "loss_unit": "nats/token", "property": "size", "level": "d160", "reference": "d48", "axis": "loss", "verdict": "same", "margin": 2.0,
    "effect": 0.24, "effect_low": -0.31, "effect_high": 0.5, "largest": -1.0, "largest_low": -1.5, "largest_high": 0.1, "n_runs": 4,
    "computed_at": NOW,
}  # fmt: skip


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("seeded")
    write_study(root, seeds=3, tasks=TASKS[:3])
    return gather(Results(root))[0]


def test_seeds_are_read_off_at_the_same_losses(seeded: Study) -> None:
    for panel, drawn in zip(seeded.panels, plain(seeded)["panels"], strict=True):
        assert panel.seeds is not None and drawn["seeds"] is not None
        known = np.isfinite(panel.seeds.value)
        assert (known.sum(axis=0) > 1).all(), "levels that only one seed reached are left out"
        losses = drawn["seeds"]["losses"]
        assert losses == sorted(losses, reverse=True)
        assert [place for place, *_ in drawn["seeds"]["runs"]] == list(range(12))
        assert all(len(column) == len(losses) for _, *columns in drawn["seeds"]["runs"] for column in columns)
        assert [group["name"] for group in drawn["seeds"]["groups"]] == ["d48", "d64", "d96", "d160"]
        for loss, share, low, high, k, n, p in (at for group in drawn["seeds"]["groups"] for at in group["at"]):
            assert loss in losses and low <= share <= high and 0 <= k <= n <= 3 and p is None


def test_a_sentence_says_what_a_mean_would_hide(seeded: Study) -> None:
    assert seeded.panels[0].seeds is not None
    said = luck(seeded.panels[0].seeds)
    assert "of 3 seeds of d" in said and "half of the best gain: a probability from 0." in said
    assert said.endswith("too few for a dip test: 3 seeds, 10 are needed.")
    assert [probability(p) for p in (0.0002, 0.0425, 1.0)] == ["p < 0.001", "p 0.043", "p 1.000"]


def test_gradual_tasks_and_single_seeds_have_no_such_section(tmp_path: Path) -> None:
    write_study(tmp_path / "gradual", seeds=2, tasks=TASKS[7:8])
    write_study(tmp_path / "single", tasks=TASKS[:1])
    for name in ("gradual", "single"):
        (study,) = gather(Results(tmp_path / name))
        assert [panel.seeds for panel in study.panels] == [None]


def test_how_runs_compare_stands_beside_the_task(tmp_path: Path) -> None:
    write_study(tmp_path, tasks=TASKS[:2])
    results = Results(tmp_path)
    unclear = COMPARED | {"property": "optimizer", "level": "muon", "reference": "adamw", "verdict": "undecided", "reason": "open <"}
    others = [
        COMPARED | {"property": "seed", "level": None, "reference": None},  # nothing was compared
        COMPARED | {"axis": "tokens", "verdict": "different"},
        COMPARED | {"metric": "bits_per_byte", "verdict": "different"},
        COMPARED | {"study": "other", "verdict": "different"},
    ]
    results.write("same_curve", [COMPARED, unclear | {"study": "other+synthetic"}, *others])
    (study,) = gather(results)
    assert [[row["property"] for row in panel.same_curve] for panel in study.panels] == [["optimizer", "size"], []]
    page = write_report(results, tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("at equal loss: <b>") == 2
    assert "By size at equal loss: <b>same</b>; d160 against d48 +0.2 [−0.3, 0.5] points, where it is most −1.0 [−1.5, 0.1];" in page
    assert "<b>undecided</b>; muon against adamw" in page and "4 runs (open &lt;)." in page


def test_comparisons_of_a_property_are_one_line() -> None:
    by_seed = COMPARED | {"property": "seed", "reference": "0"}
    rows = [
        by_seed | {"level": "1"},
        by_seed | {"level": "2", "verdict": "undecided", "largest": 3.0, "largest_low": 1.0, "largest_high": 5.0, "reason": "wide"},
        by_seed | {"level": "3"},
        COMPARED | {"effect": None, "reason": "2 runs", "verdict": "undecided"},
    ]
    curve = Curve("exact_match", True, (0.0, 0.0), [], [], [])
    assert comparisons(Panel("skill_copy", "open", 0, (curve,), 0, same_curve=tuple(rows))) == [
        ("size", "undecided", "(2 runs)"),
        (
            "seed",
            "2 same and 1 undecided",
            "2 against 0 differs most, +0.2 [−0.3, 0.5] points, where it is most +3.0 [1.0, 5.0]; margin 2 points, 4 runs (wide)",
        ),
    ]


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


def test_a_tuned_study_is_shown_at_the_loss_of_the_parents(tmp_path: Path) -> None:
    write_tuned(tmp_path, write_study(tmp_path, checkpoints=5, tasks=TASKS[:2]))
    plain_study, tuned = gather(Results(tmp_path))
    assert (plain_study.name, plain_study.parents, plain_study.amounts, plain(plain_study)["tuning"]) == ("synthetic", None, [], None)
    assert tuned.parents is not None and tuned.parents.label == "parent's held-out loss, nats/token"
    assert tuned.axis is not None and tuned.axis.dataset == "heldout", "the loss after tuning is still the one of the other figures"
    assert not [axis for axis in tuned.axes if axis.of_parent]
    drawn = plain(tuned)["tuning"]
    assert drawn["amounts"] == tuned.amounts == [0, 8_192, 65_536]
    known = plain_study.axes[[axis.dataset for axis in plain_study.axes].index("heldout")].values
    assert set(tuned.parents.values) < set(known), "the losses of the trained parents, whichever amount follows"
    assert len(drawn["values"]) == len(tuned.checkpoints) == 3 * 4 * 4
    page = write_report(Results(tmp_path), tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("What tuning moves") == 1 and "losslens tuning --study synthetic-tuned" in page


def test_what_tells_runs_apart(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=2, tasks=())
    (study,) = gather(Results(tmp_path))
    assert {group.by: group.names for group in study.groups} == {"size": ("d48", "d64", "d96", "d160"), "seed": ("0", "1")}
    alone = replace(study, sizes=study.sizes[:1], runs=tuple({**run, "size": "d48", "optimizer": f"o{run['seed']}"} for run in study.runs))
    assert [group.by for group in alone.groups] == ["optimizer", "size", "seed"], "first what is shown first"
    assert [study.runs[i]["seed"] for i in range(8)] == [int(study.groups[1].names[k]) for k in study.groups[1].of]
