"""Whether runs that differ share a curve: compared at equal loss, compute and tokens, and stored."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from jobs.filters import EVERYTHING, Filters
from losslens import analysis
from losslens.analysis.same_curve import MARGIN
from losslens.results import Results


def same_curve(
    results: Path, by: str = "size", margin: float = MARGIN, filters: Filters = EVERYTHING, against: str | None = None
) -> pa.Table:
    """What a property of runs adds at equal loss, compute and tokens; the rows are stored, so view `same_curve` answers with them.

    Raises:
        UserError: `by`, `against` or `margin` cannot be; no results there, nothing scored, or a filter that matches nothing.
        EnvironmentFailure: the rows cannot be written.
    """
    stored = Results(results)
    found = analysis.same_curve(filters.points(stored), stored.query("SELECT * FROM runs"), by=by, margin=margin, against=against)
    stored.write("same_curve", found)
    stored.refresh()
    return found
