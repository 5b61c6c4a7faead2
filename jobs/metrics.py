"""For which metrics a threshold stays: verdicts under every metric that is stored or that stored options give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.console import human
from jobs.filters import EVERYTHING, Filters
from losslens import analysis
from losslens.analysis.agreement import agreement
from losslens.results import Results

_SHOWN = {"task": "task", "format": "format", "loss_dataset": "loss", "loss_unit": "unit", "stays": "stays"}


def metrics(results: Path, filters: Filters = EVERYTHING) -> list[dict[str, Any]]:
    """The verdict on each task under each metric, and whether its threshold stays. The verdicts are stored as `thresholds` stores
    its own. Errors as for `jobs.analyse.thresholds`."""
    stored = Results(results)
    points = filters.points(stored)
    wanted = filters.columns() | {name: pc.unique(points[name]).to_pylist() for name in ("loss_dataset", "loss_unit")}
    where = " AND ".join(f"list_contains(${number}, {name})" for number, name in enumerate(wanted, 1))
    more = stored.query(f"SELECT * FROM curve_of_samples WHERE {where}", list(wanted.values()))
    found = analysis.thresholds(pa.concat_tables([points, more.select(points.column_names)]))
    stored.write("thresholds", found)
    stored.refresh()
    return agreement(found)


def for_eyes(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows with one column a metric, as a terminal has room for, and the headings."""
    names = [name.removesuffix("_verdict") for name in (rows[0] if rows else {}) if name.endswith("_verdict")]
    shown = [{**row, **{name: _said(row, name) for name in names}} for row in rows]
    return shown, {**_SHOWN, **{name: name for name in names}, "reason": "reason"}


def _said(row: Mapping[str, Any], metric: str) -> str:
    verdict = row[f"{metric}_verdict"]
    if row[f"{metric}_eta"] is None:
        return verdict or "-"
    return f"{human(row[f'{metric}_eta'])} [{human(row[f'{metric}_eta_low'])}, {human(row[f'{metric}_eta_high'])}]"
