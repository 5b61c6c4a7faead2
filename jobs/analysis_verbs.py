"""The verbs that analyse a results directory: each asks one question of its curves and prints the answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import Format, show
from jobs.filters import Filters
from jobs.options import AsFormat, Overrides, Study, filtered

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
SEEDS_SHOWN = {
    "task": "task",
    "format": "format",
    "metric": "metric",
    "size": "size",
    "loss_dataset": "loss",
    "loss_unit": "unit",
    "loss": "at",
    "n_seeds": "seeds",
    "mean": "mean",
    "sd": "sd",
    "excess_sd": "beyond items",
    "lowest": "lowest",
    "highest": "highest",
    "above": "have it",
    "half": "past half",
    "half_low": "probability from",
    "half_high": "to",
    "dip_p": "dip p",
    "reason": "why none",
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
}
GAINS_SHOWN = {
    "study": "study",
    "loss_dataset": "loss",
    "loss_unit": "unit",
    "margin": "margin",
    "fixed": "at fixed",
    "at": "of",
    "params": "doubling gains less from size",
    "low": "from",
    "high": "to",
    "range": "range",
}
DESIGN_SHOWN = {
    "sizes": "sizes",
    "tokens_factor": "x tokens",
    "checkpoints": "saved",
    "seeds": "seeds",
    "items": "items",
    "n_runs": "runs",
    "flops": "FLOPs",
    "found": "found",
    "half_width": "+-",
    "error": "error",
    "coverage": "covers",
    "reached": "within",
    "cheapest": "cheapest",
}


def add_analyses(app: typer.Typer) -> None:
    """Give `app` the verbs of this file."""
    app.command("thresholds")(filtered(_thresholds))
    app.command("correlations")(filtered(_correlations))
    app.command("same-curve")(filtered(_same_curve))
    app.command("seeds")(filtered(_seeds))
    app.command("axes")(filtered(_axes, loss_axis=False))
    app.command("metrics")(filtered(_metrics))
    app.command("translate")(filtered(_translate, loss_axis=False))
    app.command("forecast")(filtered(_forecast, loss_axis=False))
    app.command("scaling")(filtered(_scaling, loss_axis=False))
    app.command("design")(_design)


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
        str,
        typer.Option(
            "--by",
            help="What runs differ in: size, architecture, optimizer, corpus, seed, tokenizer, schedule, variant, study, a factor.",
        ),
    ] = "size",
    margin: Annotated[float, typer.Option("--margin", metavar="POINTS", help="A smaller difference counts as none.")] = 2.0,
    against: Annotated[
        str | None, typer.Option("--against", metavar="LEVEL", help="Compare with this one (default: the one that most runs have).")
    ] = None,
) -> None:
    """Whether runs that differ in size, or in another thing, score alike at equal loss."""
    from jobs.same_curve import same_curve

    found = same_curve(results, by, margin, filters, against)
    show(found, format, columns=SAME_CURVE_SHOWN)
    if format is Format.table:
        print(f"same: within {margin:g} points all along the curve, see docs/SAME_CURVE.md", file=sys.stderr)


def _seeds(results: Path, filters: Filters, format: Format) -> None:
    """How much of each score is luck: seeds compared at losses around where it rises."""
    from jobs.seeds import seeds

    show(seeds(results, filters), format, columns=SEEDS_SHOWN)


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
    compute: Annotated[
        float | None, typer.Option("--compute", metavar="C", help="That gain at so many FLOPs too (default: the most of a run).")
    ] = None,
) -> None:
    """How loss follows size and data, at which size it passes a threshold, and from which on more size gains little."""
    from jobs.scaling import gains, laws

    found = laws(results, filters, eta=eta, tokens=tokens, margin=margin, compute=compute)
    show(found, format, columns=SCALING_SHOWN)
    if format is Format.table:
        show(gains(found), columns=GAINS_SHOWN)


def _design(
    study: Study,
    eta: Annotated[float, typer.Option("--eta", metavar="LOSS", help="Where the ability is expected to appear, in nats/token.")],
    within: Annotated[float, typer.Option("--within", metavar="NATS", help="How closely eta is wanted.")] = 0.05,
    unsure: Annotated[float, typer.Option("--unsure", metavar="NATS", help="How far from --eta it may lie.")] = 0.1,
    rise: Annotated[
        str, typer.Option("--rise", metavar="A,B", help="How it rises: linear, jump, slow start, ... (docs/DESIGN.md).")
    ] = "linear",
    sizes: Annotated[str | None, typer.Option("--sizes", metavar="K,K", help="How many sizes (default: 1, 2 and 4, or all).")] = None,
    tokens: Annotated[str, typer.Option("--tokens", metavar="X,X", help="Multiples of the study's tokens.")] = "0.5,1",
    checkpoints: Annotated[str, typer.Option("--checkpoints", metavar="N,N", help="Checkpoints of a run.")] = "20,60",
    seeds: Annotated[str, typer.Option("--seeds", metavar="N,N", help="Runs of a size.")] = "1,2",
    items: Annotated[str, typer.Option("--items", metavar="N,N", help="Items of the task.")] = "500,2000",
    chance: Annotated[float, typer.Option("--chance", help="What guessing scores.")] = 0.25,
    spread: Annotated[float, typer.Option("--spread", metavar="NATS", help="Standard deviation of eta between runs.")] = 0.02,
    wobble: Annotated[float, typer.Option("--wobble", help="That of a checkpoint's true score, in parts of chance to best.")] = 0.01,
    item_tokens: Annotated[int, typer.Option("--item-tokens", metavar="T", help="Tokens of an item, all options, for the cost.")] = 256,
    law: Annotated[
        str | None, typer.Option("--law", metavar="A,ALPHA,B,BETA,E", help="Loss by size and tokens (default: Hoffmann et al. 2022).")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="DIR", help="Fit the law to the study's checkpoints in these results.")
    ] = None,
    loss_dataset: Annotated[str, typer.Option("--loss-dataset", help="With --results: the loss to fit.")] = "heldout",
    curves: Annotated[int, typer.Option("--curves", min=2, help="Simulated curves a design; time grows with it.")] = 12,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the simulation.")] = 0,
    overrides: Overrides = None,
    format: AsFormat = Format.table,
) -> None:
    """How many sizes, tokens, checkpoints, seeds and items place a threshold closely enough, by simulation."""
    from jobs.design import design, grid_of, law_of, summary
    from losslens.analysis.design import Ability
    from losslens.analysis.simulated import Noise
    from losslens.specs import load_study

    spec = load_study(study, overrides or ())
    grid, known = grid_of(spec, sizes, tokens, checkpoints, seeds, items), law_of(spec, law, results, loss_dataset)
    ability, noise = Ability(eta, unsure, tuple(name.strip() for name in rise.split(","))), Noise(0, chance, spread, wobble)
    rows = design(spec, grid, ability, noise, known, within=within, item_tokens=item_tokens, curves=curves, seed=seed)
    show(rows, format, columns=DESIGN_SHOWN)
    for line in summary(rows, known):
        print(line, file=sys.stderr)
