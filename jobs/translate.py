"""Thresholds moved from the loss they were found on to another."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from jobs.axes import axis_named
from jobs.filters import EVERYTHING, Filters
from losslens.analysis.translation import translate as translated
from losslens.errors import UserError
from losslens.results import Results

_LOSSES = """
SELECT r.study, c.run_id, l.checkpoint_id, coalesce(c.tokens, c.step) AS tokens, l.dataset, l.unit, l.value
FROM losses AS l JOIN checkpoints AS c USING (checkpoint_id) LEFT JOIN runs AS r ON r.run_id = c.run_id
"""


def translate(results: Path, to: str, to_study: str | None = None, filters: Filters = EVERYTHING) -> pa.Table:
    """The stored thresholds of the losses that pass the filters, as the loss `to`, DATASET:UNIT, of the same or another study.

    Raises:
        UserError: no results or thresholds there, no such loss, or too few checkpoints that have both losses.
    """
    stored = Results(results)
    goal = axis_named(to)
    found = stored.query("FROM thresholds WHERE verdict = 'emergent'")
    for name, values in filters.columns().items():
        if name != "loss_dataset":  # those on the loss `to` itself are what translations are held against
            found = found.filter(pc.is_in(found[name], pa.array(values)))
    if not found.num_rows:
        raise UserError("There is no threshold to translate.", "Find them first: `losslens thresholds`, or drop a filter.")
    losses = stored.query(_LOSSES)
    known = sorted({f"{name}:{unit}" for name, unit in zip(losses["dataset"].to_pylist(), losses["unit"].to_pylist(), strict=True)})
    if to not in known:
        raise UserError(f"No checkpoint has the loss {to}.", f"There are: {', '.join(known)}.")
    moved = translated(found, losses, goal, to_study)
    wanted = filters.columns().get("loss_dataset")
    return moved if wanted is None else moved.filter(pc.is_in(moved["loss_dataset"], pa.array(wanted)))
