"""Where runs pass half of the best gain: one question for all tasks gives what the macro gives task by task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from losslens.report.crossings import with_crossings
from losslens.report.gather import gather
from losslens.results import Results
from tests.synthetic import TASKS, write_study


def test_one_question_gives_what_many_give(tmp_path: Path) -> None:
    """Two studies with the same tasks, one of them in two formats, each with a level of its own."""
    write_study(tmp_path, name="first", tasks=(TASKS[0], *TASKS[-3:]), seeds=2)
    write_study(tmp_path, name="second", tasks=(TASKS[0],), seed=1)
    results = Results(tmp_path)
    found = 0
    for study in gather(results):
        assert study.axis is not None
        for panel in study.panels:
            asked = results.query(
                "SELECT run_id, loss, tokens, flops FROM crossings(?, ?, ?) WHERE study = ? AND format = ? AND loss_dataset = ?"
                " AND loss_unit = ? AND loss IS NOT NULL",
                (panel.task, panel.curve.metric, panel.level, study.name, panel.format, study.axis.dataset, study.axis.unit),
            ).to_pylist()
            told = {(study.runs[one.run]["run_id"], one.loss, one.tokens, one.flops) for one in panel.crossings}
            assert told == ({tuple(row.values()) for row in asked} if panel.level is not None else set())
            found += len(told)
            for one in panel.crossings:
                losses = [value for point, value in zip(study.checkpoints, study.axis.values, strict=True) if point.run == one.run]
                place = losses.index(one.loss)
                assert one.gap == (None if place == 0 else abs((losses[place - 1] or 0.0) - (one.loss or 0.0)))
    assert found > 20


def test_nothing_is_asked_without_a_loss_or_a_task(tmp_path: Path) -> None:
    write_study(tmp_path, tasks=TASKS[:1])
    (study,) = gather(Results(tmp_path), crossings=False)
    nowhere = Results(tmp_path / "absent")
    for lacking in (replace(study, axis=None), replace(study, panels=())):
        assert with_crossings(nowhere, lacking) is lacking
