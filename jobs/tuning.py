"""What tuning did to the thresholds in a results directory: by amount, forecast from weak models, and between sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow as pa

from jobs.filters import EVERYTHING, Filters
from losslens.analysis import tuning
from losslens.analysis.emergence import forecasts
from losslens.errors import UserError
from losslens.families import PARENT
from losslens.results import Results

About = Literal["amounts", "forecast", "sizes"]

_LINEAGE = """
SELECT r.run_id, r.corpus, r.parent_checkpoint_id AS parent, coalesce(c.run_id, r.parent_checkpoint_id) AS parent_run,
       coalesce(c.tokens, c.step) AS parent_tokens
FROM runs r LEFT JOIN checkpoints c ON c.checkpoint_id = r.parent_checkpoint_id
WHERE r.parent_checkpoint_id IS NOT NULL
"""
_OF_PARENTS = "SELECT DISTINCT dataset FROM losses WHERE starts_with(dataset, $1) ORDER BY ALL"


def tuned(results: Path, filters: Filters = EVERYTHING) -> list[tuning.Tuned]:
    """What was tuned, on the parents' held-out loss in nats/token unless the filters name another.

    Raises:
        UserError: no results there, nothing was tuned, or a filter that matches nothing.
    """
    stored = Results(results)
    datasets = stored.query(_OF_PARENTS, [PARENT]).column(0).to_pylist()
    if not datasets:
        raise UserError(f"{results} holds no tuned checkpoint whose parent's loss is known", "tune some: see docs/FINETUNE.md")
    wanted = filters
    if filters.loss_dataset is None and filters.loss_axis is None:
        wanted = replace(filters, loss_axis=f"{PARENT}heldout:nats/token")
    found = tuning.tuned(wanted.points(stored), stored.query(_LINEAGE))
    if not found:
        raise UserError("no tuned checkpoint passes the filters", f"name the loss of a parent with --loss-dataset: {', '.join(datasets)}")
    return found


def report_on(found: list[tuning.Tuned], about: About, above: float | None = None) -> pa.Table:
    """The rows of one question: eta by amount, the untuned eta forecast from parents above a loss, or what the small reach."""
    if about == "forecast":
        return forecasts(found, above)
    return tuning.sizes(found) if about == "sizes" else tuning.amounts(found)
