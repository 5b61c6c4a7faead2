"""The analyses of a results directory: computed from its curves, stored beside them where they are verdicts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from jobs.filters import EVERYTHING, Filters
from jobs.progress import Board
from losslens import analysis
from losslens.results import Results


def thresholds(results: Path, filters: Filters = EVERYTHING) -> pa.Table:
    """At which loss each ability appears; the rows are stored, so view `thresholds` answers with them from now on.

    Raises:
        UserError: no results there, nothing scored, or a filter that matches nothing (its remedy names what there is).
        EnvironmentFailure: the rows cannot be written.
    """
    stored = Results(results)
    points = filters.points(stored)
    with Board() as board:
        found = analysis.thresholds(points, progress=lambda done, total: board.show("thresholds", done, total))
    stored.write("thresholds", found)
    stored.refresh()
    return found


def correlations(results: Path, filters: Filters = EVERYTHING) -> pa.Table:
    """Spearman's and Pearson's correlation of each score with each loss. Errors as for `thresholds`."""
    return analysis.correlations(filters.points(Results(results)))
