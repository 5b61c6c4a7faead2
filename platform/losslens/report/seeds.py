"""What the report says of runs that differ in their seed only: `losslens.analysis.seeds` for the metric and loss shown first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from losslens.analysis.seeds import Spread, at_each_loss, most_divided, several_seeds, spreads
from losslens.report.study import Study
from losslens.report.words import number

if TYPE_CHECKING:
    from losslens.results import Results

POINTS = """
FROM curve WHERE coalesce(study, 'unnamed') = ? AND loss_dataset IS NOT DISTINCT FROM ? AND loss_unit IS NOT DISTINCT FROM ?
AND list_contains(?, metric)
"""


def with_seeds(results: Results, study: Study) -> Study:
    """The study with the seeds of each panel at equal loss, where it has several."""
    if study.axis is None or not several_seeds(study.runs):
        return study
    metrics = sorted({panel.curve.metric for panel in study.panels})
    points = results.query(POINTS, (study.name, study.axis.dataset, study.axis.unit, metrics))
    found = {(key.task, key.format, key.shots, key.metric): spread for key, spread in spreads(points, study.runs, study.thresholds)}
    panels = (replace(panel, seeds=found.get((panel.task, panel.format, panel.shots, panel.curve.metric))) for panel in study.panels)
    return replace(study, panels=tuple(panels))


def luck(spread: Spread) -> str:
    """Two sentences about the seeds of the size that differ most, each at the loss where they are most divided."""
    found = [(alike.size or "one size", most_divided(at_each_loss(spread, members))) for alike, members in spread.groups]
    known = [(name, at) for name, at in found if at is not None]
    if not known:
        return ""
    name, at = max(known, key=lambda pair: pair[1].excess_sd)
    noise = f"{number(at.excess_sd, 2)} of it" if at.excess_sd else "none of it"
    said = (
        f"At loss {number(at.loss)}, {at.half.k} of {at.half.n} seeds of {name} are above {number(spread.level)}, half of the best gain: a "
        f"probability from {number(at.half.low, 2)} to {number(at.half.high, 2)}. Their scores go from {number(at.lowest, 2)} to "
        f"{number(at.highest, 2)}, a deviation of {number(at.sd, 2)}, {noise} beyond the noise of their items ({probability(at.spread_p)})"
    )
    if at.dip_p is None:
        return f"{said}; {at.reason}."
    return f"{said}; dip test against one group {probability(at.dip_p)}."


def probability(p: float) -> str:
    """A p value in words."""
    return "p < 0.001" if p < 0.001 else f"p {number(p)}"
