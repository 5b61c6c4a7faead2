"""The verbs that analyse a results directory: each asks one question of its curves and prints the answer."""

from __future__ import annotations

from pathlib import Path

import typer

from jobs.console import Format, show
from jobs.filters import Filters
from jobs.options import AsFormat, FormatFilter, LossDataset, Metric, OfStudy, Results, Task

# What a terminal has room for, by heading.
THRESHOLDS_SHOWN = {
    "task": "task",
    "format": "format",
    "metric": "metric",
    "loss_dataset": "loss",
    "loss_unit": "unit",
    "verdict": "verdict",
    "eta": "eta",
    "eta_low": "from",
    "eta_high": "to",
    "spearman": "spearman",
    "n_runs": "runs",
    "n_checkpoints": "points",
}


def add_analyses(app: typer.Typer) -> None:
    """Give `app` the verbs of this file."""
    app.command("thresholds")(_thresholds)
    app.command("correlations")(_correlations)


def _thresholds(
    results: Results = Path("results"),
    task: Task = None,
    format_filter: FormatFilter = None,
    metric: Metric = None,
    loss_dataset: LossDataset = None,
    study: OfStudy = None,
    format: AsFormat = Format.table,
) -> None:
    """At which loss each task leaves chance, with its verdict and interval."""
    from jobs.analyse import thresholds

    show(thresholds(results, Filters(task, format_filter, metric, loss_dataset, study)), format, columns=THRESHOLDS_SHOWN)


def _correlations(
    results: Results = Path("results"),
    task: Task = None,
    format_filter: FormatFilter = None,
    metric: Metric = None,
    loss_dataset: LossDataset = None,
    study: OfStudy = None,
    format: AsFormat = Format.table,
) -> None:
    """How closely each score follows the loss: Spearman and Pearson."""
    from jobs.analyse import correlations

    show(correlations(results, Filters(task, format_filter, metric, loss_dataset, study)), format)
