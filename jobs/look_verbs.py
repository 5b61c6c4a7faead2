"""The verbs that show results: a report, a figure, and what runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.console import Format, show
from jobs.options import AsFormat, FormatFilter, Metric, OfStudy, Results


def add_looks(app: typer.Typer) -> None:
    """Give `app` the verbs of this file."""
    app.command("report")(_report)
    app.command("figure")(_figure)
    app.command("status")(_status)


def _report(
    results: Results = Path("results"),
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write results/report.html: one self-contained file."""
    from jobs.report import report

    print(report(results, open_))


def _figure(
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task to draw.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to: .pdf, .svg or .png.")],
    against: Annotated[Literal["loss", "tokens", "flops"], typer.Option("--against", help="What the score is drawn against.")] = "loss",
    format_filter: FormatFilter = None,
    shots: Annotated[int | None, typer.Option("--shots", min=0, help="Only with so many examples.")] = None,
    metric: Metric = None,
    loss: Annotated[str | None, typer.Option("--loss-axis", metavar="DATASET:UNIT", help="The loss (default: the report's).")] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="What colours tell apart: size, architecture, ... (default: the report's).")
    ] = None,
    study: OfStudy = None,
    results: Results = Path("results"),
) -> None:
    """Draw one task's curve with its threshold, for a paper."""
    from jobs.figure import Wanted, figure

    print(figure(results, Wanted(task, study, format_filter, shots, metric, loss, by), against, out))


def _status(
    results: Results = Path("results"),
    web: Annotated[bool, typer.Option("--web", help="Serve a page that follows the runs, for browsers on this machine.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the page; 0: any that is free.")] = 8118,
    open_: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    format: AsFormat = Format.table,
) -> None:
    """What runs, and how far scoring is behind training."""
    if web or open_:
        from jobs.status_page import serve_status

        serve_status(results, port, open_)
        return
    from jobs.status import SHOWN, headline, status

    rows = status(results)
    if format is Format.table:
        print(headline(results), file=sys.stderr)
    show(rows, format, columns=SHOWN)
