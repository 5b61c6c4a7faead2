"""One task under all its metrics: whether the threshold is the model's or the metric's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from losslens.analysis.agreement import Stays, agreement
from losslens.report.study import FALLBACK_METRICS, Row, Study

STAYS: dict[Stays, str] = {"yes": "under every metric", "no": "not under every metric", "none": "under none", "unknown": "not known"}


@dataclass(frozen=True, slots=True)
class Judged:
    """A task in one form: whether its threshold stays, why, and its row of `thresholds` under each metric of the table."""

    panel: int
    stays: Stays
    reason: str
    rows: tuple[Row | None, ...]


@dataclass(frozen=True, slots=True)
class MetricTable:
    """Tasks with at least two metrics, on the headline axis."""

    metrics: tuple[str, ...]
    tasks: tuple[Judged, ...]


def metric_table(study: Study, order: Sequence[int]) -> MetricTable | None:
    """The table, panels in `order`; None where no task has verdicts under two metrics."""
    if study.axis is None:
        return None
    rows = [row for row in study.thresholds if (row["loss_dataset"], row["loss_unit"]) == (study.axis.dataset, study.axis.unit)]
    said = agreement(pa.Table.from_pylist(rows)) if rows else []
    found = {(row["task"], row["format"], row["shots"]): row for row in said}
    tasks = []
    known = dict.fromkeys([*FALLBACK_METRICS, *sorted(row["metric"] for row in rows)])
    metrics = tuple(name for name in known if any(row["metric"] == name for row in rows))
    for index in order:
        panel = study.panels[index]
        by_metric = {row["metric"]: row for row in rows if panel.owns(row)}
        if len(by_metric) > 1:
            verdict = found[panel.task, panel.format, panel.shots]
            tasks.append(Judged(index, verdict["stays"], verdict["reason"], tuple(by_metric.get(name) for name in metrics)))
    return MetricTable(metrics, tuple(tasks)) if tasks else None
