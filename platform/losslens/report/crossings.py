"""Where each run first stays above half of the best gain: asked of the database for all tasks of a study at once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from losslens.analysis.curves import half_gain
from losslens.report.study import Crossing, Curve, LossAxis, Row, Study

if TYPE_CHECKING:
    from losslens.results import Results

CROSSINGS = """
WITH wanted AS (
    SELECT unnest($1::BIGINT[]) AS panel, unnest($2::VARCHAR[]) AS task, unnest($3::VARCHAR[]) AS format, unnest($4::BIGINT[]) AS shots,
           unnest($5::VARCHAR[]) AS metric, unnest($6::DOUBLE[]) AS level
)
SELECT w.panel, c.run_id, c.step, c.tokens, c.flops, c.loss
FROM wanted AS w, crossings(w.task, w.metric, w.level) AS c
WHERE c.format IS NOT DISTINCT FROM w.format AND c.shots IS NOT DISTINCT FROM w.shots AND c.loss IS NOT NULL
  AND coalesce(c.study, 'unnamed') = $7 AND c.loss_dataset IS NOT DISTINCT FROM $8 AND c.loss_unit IS NOT DISTINCT FROM $9
"""


def with_crossings(results: Results, study: Study) -> Study:
    """The study with the level and the crossings of every panel that has them."""
    axis = study.axis
    levels = {index: level for index, panel in enumerate(study.panels) if (level := level_of(panel.curve)) is not None}
    if axis is None or not levels:
        return study
    panels = [study.panels[index] for index in levels]
    wanted = (
        list(levels), [panel.task for panel in panels], [panel.format for panel in panels], [panel.shots for panel in panels],
        [panel.curve.metric for panel in panels], list(levels.values()), study.name, axis.dataset, axis.unit,
    )  # fmt: skip
    places = {run["run_id"]: index for index, run in enumerate(study.runs)}
    gaps = _gaps(study, axis)
    found: dict[int, list[Crossing]] = {index: [] for index in levels}
    for row in results.query(CROSSINGS, wanted).to_pylist():
        if row["run_id"] in places:
            found[row["panel"]].append(_crossing(places[row["run_id"]], row, gaps))
    marked = [
        replace(panel, level=levels[index], crossings=tuple(sorted(found[index], key=lambda crossing: crossing.run)))
        if index in levels
        else panel
        for index, panel in enumerate(study.panels)
    ]
    return replace(study, panels=tuple(marked))


def level_of(curve: Curve) -> float | None:
    """Half of the best gain; None where nothing rises two standard errors above chance, and where less is better."""
    if curve.chance is None or not curve.higher_is_better:
        return None
    points = [(value, error or 0.0) for value, error in zip(curve.values, curve.stderr, strict=True) if value is not None]
    best, error = max(points, default=(curve.chance[1], 0.0))
    return half_gain(best, error, curve.chance[1])


def _gaps(study: Study, axis: LossAxis) -> dict[tuple[int, int | None, int | None], float]:
    """By how much the loss changed since the checkpoint before; by run, step and tokens."""
    before: dict[int, float] = {}
    gaps = {}
    for checkpoint, value in zip(study.checkpoints, axis.values, strict=True):
        if value is not None:
            if checkpoint.run in before:
                gaps[checkpoint.run, checkpoint.step, checkpoint.tokens] = abs(before[checkpoint.run] - value)
            before[checkpoint.run] = value
    return gaps


def _crossing(run: int, row: Row, gaps: dict[tuple[int, int | None, int | None], float]) -> Crossing:
    loss, tokens, flops = (
        None if row[key] is None or not math.isfinite(row[key]) else float(row[key]) for key in ("loss", "tokens", "flops")
    )
    return Crossing(run, loss, tokens, flops, gaps.get((run, row["step"], row["tokens"])))
