"""The verb that tells what tuning did: three tables, of amounts, of a forecast and of sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.console import Format, show
from jobs.filters import Filters
from jobs.options import filtered

# What a terminal has room for, by heading.
TUNING_SHOWN = {
    "task": "task",
    "format": "format",
    "metric": "metric",
    "amount": "tuned on",
    "verdict": "verdict",
    "eta": "eta",
    "eta_low": "from",
    "eta_high": "to",
    "shift": "moved by",
    "shift_low": "at least",
    "shift_high": "at most",
    "moved": "appears",
    "n_runs": "runs",
    "n_parents": "parents",
}
EMERGENCE_SHOWN = {
    "task": "task",
    "format": "format",
    "metric": "metric",
    "above": "from above",
    "verdict": "verdict",
    "predicted": "forecast",
    "predicted_low": "from",
    "predicted_high": "to",
    "actual": "actual",
    "error": "error",
    "constant": "constant",
    "linear": "linear",
    "n_amounts": "amounts",
    "n_parents": "parents",
    "reason": "reason",
}
TUNED_SIZES_SHOWN = {
    "task": "task",
    "format": "format",
    "metric": "metric",
    "small": "small",
    "large": "large",
    "verdict": "verdict",
    "amount": "tuned on",
    "target": "large scores",
    "target_loss": "at loss",
    "score": "small scores",
    "at_loss": "gets there at",
    "untuned_at_loss": "untuned at",
}


def add_tuning(app: typer.Typer) -> None:
    """Give `app` the verb of this file."""
    app.command("tuning")(filtered(_tuning))


def _tuning(
    results: Path,
    filters: Filters,
    format: Format,
    about: Annotated[
        Literal["all", "amounts", "forecast", "sizes"], typer.Option("--about", help="One table only; programs get amounts otherwise.")
    ] = "all",
    above: Annotated[
        float | None, typer.Option("--above", metavar="LOSS", help="Forecast from parents above it (default: all that lack the ability).")
    ] = None,
) -> None:
    """Whether tuning moves thresholds, by amount of data; the untuned one forecast from weak models; what small models reach."""
    from jobs.tuning import report_on, tuned

    found = tuned(results, filters)
    if about in ("all", "amounts"):
        show(report_on(found, "amounts"), format, columns=TUNING_SHOWN)
    if about == "forecast" or (about == "all" and format is Format.table):
        show(report_on(found, "forecast", above), format, columns=EMERGENCE_SHOWN)
    if about == "sizes" or (about == "all" and format is Format.table):
        show(report_on(found, "sizes"), format, columns=TUNED_SIZES_SHOWN)
