"""One task's curve as a file for a paper."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from losslens.errors import UserError
from losslens.report.drawing import Against, draw_figure
from losslens.report.gather import gather
from losslens.report.study import Curve, Group, LossAxis, Panel, Study
from losslens.results import Results


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which curve; None where there is only one, or for what the report shows first (metric, loss, `by`). `loss` is DATASET:UNIT, `by` what
    colours tell apart."""

    task: str
    study: str | None = None
    format: str | None = None
    shots: int | None = None
    metric: str | None = None
    loss: str | None = None
    by: str | None = None


def figure(results: Path, wanted: Wanted, against: Against, out: Path) -> Path:
    """Draw the curve into `out` (.pdf, .svg or .png) with its stored threshold, and return its path.

    Raises:
        UserError: no such curve, more than one, or runs do not differ in `by`; the remedy names what there is.
        EnvironmentFailure: matplotlib is not installed, or the file cannot be written.
    """
    stored = Results(results)
    study, panel = _form(stored, wanted)
    curve, axis, group = _metric(panel, wanted.metric), _loss(study, wanted.loss), _group(study, wanted.by)
    if against == "loss" and study.threshold(panel, curve, axis) is None:
        print("no threshold is stored for this curve: losslens thresholds computes them", file=sys.stderr)
    return draw_figure(study, panel, curve, axis, against, group, out)


def _form(stored: Results, wanted: Wanted) -> tuple[Study, Panel]:
    found = [(study, panel) for study in gather(stored, task=wanted.task, crossings=False) for panel in study.panels]
    if not found:
        names = stored.query("SELECT DISTINCT task FROM curve ORDER BY 1").column(0).to_pylist()
        raise UserError(f"{stored} has no task {wanted.task!r} with both a loss and a score", f"there are: {_listed(names)}")
    choices: list[tuple[str, object, Callable[[tuple[Study, Panel]], object]]] = [
        ("--study", wanted.study, lambda pair: pair[0].name),
        ("--format-filter", wanted.format, lambda pair: pair[1].format),
        ("--shots", wanted.shots, lambda pair: pair[1].shots),
    ]
    for option, value, of in choices:
        there = list(dict.fromkeys(map(of, found)))
        found = [pair for pair in found if value is None or of(pair) == value]
        if not found:
            raise UserError(f"{wanted.task} has no scores with {option} {value}", f"there are: {_listed(there)}")
        if value is None and len(there) > 1:
            raise UserError(f"{wanted.task} has several curves", f"choose with {option}: {_listed(there)}")
    return found[0]


def _metric(panel: Panel, name: str | None) -> Curve:
    if name is None:
        return panel.curve
    found = {curve.metric: curve for curve in panel.curves}
    if name not in found:
        raise UserError(f"{panel.task} has no metric {name!r}", f"there are: {_listed(found)}")
    return found[name]


def _loss(study: Study, name: str | None) -> LossAxis:
    found = {f"{axis.dataset}:{axis.unit}": axis for axis in study.axes}
    if name is None:
        assert study.axis is not None  # a score without a loss has no panel
        return study.axis
    if name not in found:
        raise UserError(f"{study.name} has no loss {name!r}", f"there are: {_listed(found)}")
    return found[name]


def _group(study: Study, by: str | None) -> Group:
    found = {group.by: group for group in study.groups}
    if by is None:
        return study.groups[0]
    if by not in found:
        raise UserError(f"the runs of {study.name} do not differ in {by!r}", f"colour them by {_listed(found)}")
    return found[by]


def _listed(names: Iterable[object]) -> str:
    return ", ".join("unknown" if name is None else str(name) for name in names)
