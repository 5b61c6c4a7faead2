"""Merge the many small parts of a results directory into few large ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from losslens.results import Results


def compact(results: Path, grace: float) -> list[dict[str, Any]]:
    """One row per table: how many parts became how many, and how many went because their grace of so many seconds is over.

    Raises:
        UserError: no results there, or a newer losslens wrote them.
        DataMismatch: a part cannot be read; the sentence names the file.
        EnvironmentFailure: no space or no permission.
    """
    return [asdict(table) for table in Results(results).compact(grace)]
