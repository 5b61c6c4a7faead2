"""The verbs that take results elsewhere: into a file, or into a tool that draws curves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.console import Format, show
from jobs.filters import Filters
from jobs.options import AsFormat, FormatFilter, LossDataset, Metric, OfStudy, Results, Task


def add_outs(app: typer.Typer) -> None:
    """Give `app` the verbs of this file."""
    app.command("export")(_export)
    app.command("log")(_log)


def _export(
    what: Annotated[
        list[str], typer.Argument(metavar="[TABLE] FILE", help="A table or view (default: curve); a .parquet, .csv or .jsonl file, or .gz.")
    ],
    task: Task = None,
    format_filter: FormatFilter = None,
    metric: Metric = None,
    loss_dataset: LossDataset = None,
    study: OfStudy = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
    results: Results = Path("results"),
) -> None:
    """Write curves, or any table or view, into one file for other tools."""
    from jobs.export import export
    from losslens.errors import UserError

    *table, out = what
    if len(table) > 1:
        raise UserError(f"export takes a table and a file, not {len(what)} arguments", "losslens export curve curves.parquet")
    filters = Filters(task, format_filter, metric, loss_dataset, study)
    done = export(results, table[0] if table else "curve", Path(out), filters.columns(), force=force)
    print(f"{done['rows']:,} rows of {done['table']} in {done['file']}, {done['bytes']:,} bytes", file=sys.stderr)


def _log(
    to: Annotated[Literal["tensorboard", "wandb", "mlflow"], typer.Option("--to", help="Which tool.")] = "tensorboard",
    follow: Annotated[bool, typer.Option("--follow", help="Go on: send what appears, until Ctrl-C.")] = False,
    project: Annotated[str, typer.Option("--project", metavar="NAME", help="W&B's project or MLflow's experiment.")] = "losslens",
    study: OfStudy = None,
    results: Results = Path("results"),
    format: AsFormat = Format.table,
) -> None:
    """Send training logs, losses and scores to TensorBoard, W&B or MLflow; what was sent is not sent again."""
    from jobs.log import log

    show(log(results, to, project, study, follow=follow), format)
