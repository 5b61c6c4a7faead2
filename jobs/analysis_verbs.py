"""The verbs that analyse a results directory: each asks one question of its curves and prints the answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import Format, show
from jobs.filters import Filters
from jobs.options import filtered

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
SAME_CURVE_SHOWN = {
    "task": "task",
    "format": "format",
    "shots": "shots",
    "metric": "metric",
    "loss_dataset": "loss",
    "axis": "at equal",
    "level": "level",
    "reference": "against",
    "verdict": "verdict",
    "effect": "points",
    "effect_low": "from",
    "effect_high": "to",
    "largest": "largest",
    "axis_error": "error",
    "explains_most": "best",
    "n_runs": "runs",
    "reason": "why open",
}
AXES_SHOWN = {
    "task": "task",
    "format": "format",
    "metric": "metric",
    "loss_dataset": "axis",
    "loss_unit": "unit",
    "axis_error": "error",
    "behind": "behind",
    "explains_most": "best",
    "reason": "reason",
}
TRANSLATE_SHOWN = {
    "task": "task",
    "format": "format",
    "metric": "metric",
    "loss_dataset": "loss",
    "loss_unit": "unit",
    "eta": "eta",
    "to_dataset": "as",
    "to_unit": "unit of it",
    "translated": "translated",
    "translated_low": "from",
    "translated_high": "to",
    "direct": "found there",
    "unseen_error": "error",
}
FORECASTS_SHOWN = {
    "target": "target",
    "task": "task",
    "format": "format",
    "metric": "metric",
    "predicted": "forecast",
    "predicted_low": "from",
    "predicted_high": "to",
    "actual": "actual",
    "error_points": "error",
    "two_stage": "two-stage",
    "one_stage": "one-stage",
    "linear": "linear",
    "constant": "constant",
    "reason": "do not trust",
}
SCALING_SHOWN = {
    "study": "study",
    "loss_dataset": "loss",
    "loss_unit": "unit",
    "law": "law",
    "alpha": "alpha",
    "beta": "beta",
    "floor": "E",
    "fit_error": "misfit",
    "held_out_error": "held out",
    "n_runs": "runs",
    "task": "task",
    "eta": "eta",
    "tokens": "at tokens",
    "params_at_eta": "size at eta",
    "params_at_eta_low": "from",
    "params_at_eta_high": "to",
    "margin": "margin",
    "params_at_margin": "size beyond",
    "params_at_margin_low": "from ",
    "params_at_margin_high": "to ",
}


def add_analyses(app: typer.Typer) -> None:
    """Give `app` the verbs of this file."""
    app.command("thresholds")(filtered(_thresholds))
    app.command("correlations")(filtered(_correlations))
    app.command("same-curve")(filtered(_same_curve))
    app.command("axes")(filtered(_axes, loss_axis=False))
    app.command("metrics")(filtered(_metrics))
    app.command("translate")(filtered(_translate, loss_axis=False))
    app.command("forecast")(filtered(_forecast, loss_axis=False))
    app.command("scaling")(filtered(_scaling, loss_axis=False))


def _thresholds(results: Path, filters: Filters, format: Format) -> None:
    """At which loss each task leaves chance, with its verdict and interval."""
    from jobs.analyse import thresholds

    show(thresholds(results, filters), format, columns=THRESHOLDS_SHOWN)


def _correlations(results: Path, filters: Filters, format: Format) -> None:
    """How closely each score follows the loss: Spearman and Pearson."""
    from jobs.analyse import correlations

    show(correlations(results, filters), format)


def _same_curve(
    results: Path,
    filters: Filters,
    format: Format,
    by: Annotated[
        str, typer.Option("--by", help="What runs differ in: size, architecture, optimizer, corpus, seed, tokenizer, schedule, study.")
    ] = "size",
    margin: Annotated[float, typer.Option("--margin", metavar="POINTS", help="A smaller difference counts as none.")] = 2.0,
) -> None:
    """Whether runs that differ in size, or in another thing, score alike at equal loss."""
    from jobs.same_curve import same_curve

    found = same_curve(results, by, margin, filters)
    show(found, format, columns=SAME_CURVE_SHOWN)
    if format is Format.table:
        print(f"same: within {margin:g} points all along the curve, see docs/SAME_CURVE.md", file=sys.stderr)


def _axes(results: Path, filters: Filters, format: Format) -> None:
    """Which loss, or compute or tokens, foretells each score best in a run not seen."""
    from jobs.axes import compared_axes

    show(compared_axes(results, filters), format, columns=AXES_SHOWN)


def _metrics(results: Path, filters: Filters, format: Format) -> None:
    """For which metrics a threshold stays."""
    from jobs.metrics import for_eyes, metrics

    rows = metrics(results, filters)
    shown, columns = for_eyes(rows)
    show(shown if format is Format.table else rows, format, columns=columns)


def _translate(
    results: Path,
    filters: Filters,
    format: Format,
    to: Annotated[str, typer.Option("--to", metavar="DATASET:UNIT", help="The loss to express thresholds in.")],
    to_study: Annotated[str | None, typer.Option("--to-study", help="A study with another tokenizer; by way of bits/byte.")] = None,
) -> None:
    """Express stored thresholds in another loss, with the error of the translation."""
    from jobs.translate import translate

    found = translate(results, to, to_study, filters)
    show(found, format, columns=TRANSLATE_SHOWN)


def _forecast(
    results: Path,
    filters: Filters,
    format: Format,
    hold_out: Annotated[
        str, typer.Option("--hold-out", metavar="largest|SIZE,RUN", help="The sizes or runs to forecast from the others.")
    ] = "largest",
    without: Annotated[str | None, typer.Option("--without", metavar="GLOB,GLOB", help="Runs neither learned from nor forecast.")] = None,
    params: Annotated[
        float | None, typer.Option("--params", metavar="N", help="Forecast a model not trained yet: its size, as the study counts it.")
    ] = None,
    tokens: Annotated[float | None, typer.Option("--tokens", metavar="D", help="With --params: the tokens it will read.")] = None,
) -> None:
    """What a larger model will score, from the smaller ones, with interval and rivals."""
    from jobs.forecast import asked, forecast, summary

    wanted = asked(hold_out, without, params, tokens)
    found = forecast(results, wanted, filters)
    show(found, format, columns=FORECASTS_SHOWN)
    for line in summary(found):
        print(line, file=sys.stderr)


def _scaling(
    results: Path,
    filters: Filters,
    format: Format,
    eta: Annotated[float | None, typer.Option("--eta", help="The loss to reach (default: the stored thresholds).")] = None,
    tokens: Annotated[
        float | None, typer.Option("--tokens", metavar="D", help="After so many tokens (default: the most of a run).")
    ] = None,
    margin: Annotated[float, typer.Option("--margin", help="What doubling the size must gain at least, in the loss's unit.")] = 0.02,
) -> None:
    """How loss follows size and data, and at which size it passes a threshold."""
    from jobs.scaling import laws

    found = laws(results, filters, eta=eta, tokens=tokens, margin=margin)
    show(found, format, columns=SCALING_SHOWN)
