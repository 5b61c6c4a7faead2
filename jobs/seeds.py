"""How much of each score is luck: runs that differ in their seed only, compared at equal loss."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa

from jobs.filters import EVERYTHING, Filters
from losslens.analysis.curves import NO_CHANCE, Key
from losslens.analysis.seeds import seeds as compared
from losslens.analysis.seeds import several_seeds
from losslens.errors import UserError
from losslens.results import Results


def seeds(results: Path, filters: Filters = EVERYTHING) -> pa.Table:
    """Each score of several seeds at losses around where they rise; stored thresholds say where, and which curves have none.

    What is left out goes to stderr, counted by reason.

    Raises:
        UserError: no runs differ in their seed only; no results there, nothing scored, or a filter that matches nothing.
    """
    stored = Results(results)
    points = filters.points(stored)
    runs = stored.query("FROM runs WHERE list_contains(?, run_id)", (sorted(set(points["run_id"].to_pylist()) - {None}),))
    if not several_seeds(runs.to_pylist()):
        raise UserError(f"No runs in {stored} differ in their seed only.", "Train some: `losslens run STUDY --set seeds=10`.")
    judged = stored.query("SELECT * FROM thresholds")
    found = compared(points, runs, judged)
    _tell_what_is_missing(points, found, judged)
    return found


def _tell_what_is_missing(points: pa.Table, found: pa.Table, judged: pa.Table) -> None:
    there = {Key(**row) for row in found.select(Key._fields).to_pylist()}
    verdicts = {Key(*(row[name] for name in Key._fields)): row["verdict"] for row in judged.to_pylist()}
    curves = {Key(**row) for row in points.group_by(list(Key._fields)).aggregate([]).select(Key._fields).to_pylist()}
    reasons = Counter(_reason(key, verdicts.get(key)) for key in curves - there)
    for reason, count in reasons.most_common():
        print(f"left out: {count} curves {reason}", file=sys.stderr)


def _reason(key: Key, verdict: str | None) -> str:
    if key.metric in NO_CHANCE:
        return f"of {key.metric}, which has no chance level"
    return "passed halfway by fewer than two seeds" if verdict in (None, "emergent") else f"called {verdict}"
