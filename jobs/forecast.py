"""Forecasting scores from a results directory: which loss belongs to which task, what is held out, what is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from jobs.filters import Filters
from jobs.progress import Board
from losslens.analysis.choice import Choice
from losslens.analysis.forecasts import Target, forecasts
from losslens.analysis.ladder import CHOICE, OWN
from losslens.errors import UserError
from losslens.results import Results

_GAUGES = (CHOICE, OWN)


@dataclass(frozen=True, slots=True)
class Asked:
    """What to forecast: held-out sizes or runs, or a model not trained yet; `without` are runs to leave aside, as globs."""

    hold_out: tuple[str, ...] = ("largest",)
    without: tuple[str, ...] = ()
    target: Target | None = None


def asked(hold_out: str, without: str | None, params: float | None, tokens: float | None) -> Asked:
    """What the options of the command line ask for. Raises UserError when size and tokens of a target do not come together."""
    if (params is None) != (tokens is None):
        raise UserError("A model not trained yet has a size and tokens.", "Give both --params and --tokens.")
    target = None if params is None or tokens is None else Target(params, tokens)
    if target is not None and min(target.params, target.tokens) <= 0:
        raise UserError("Size and tokens are numbers above 0.", "Give them as in --params 7e9 --tokens 4e12.")
    return Asked(tuple(hold_out.split(",")), tuple(without.split(",")) if without else (), target)


def forecast(results: Path | str, asked: Asked, filters: Filters) -> pa.Table:
    """Forecasts of every score that passes the filters; stored, so that view `forecasts` answers with them from now on.

    How methods were chosen and how far they missed is told on stderr.

    Raises:
        UserError: no results there, a filter that matches nothing, several losses to choose from, or nothing to forecast.
        EnvironmentFailure: the rows cannot be written.
    """
    stored = Results(results)
    rows = _without(points(stored, filters), asked.without)
    metrics = None if filters.metric is None else filters.metric.split(",")
    with Board() as board:
        found, choices = forecasts(
            rows,
            hold_out=asked.hold_out,
            target=asked.target,
            metrics=metrics,
            progress=lambda done, total, what: board.show("forecast", done, total, what),
        )
        for line in told(choices):
            board.say(line)
    stored.write("forecasts", found)
    stored.refresh()
    return found


def points(stored: Results, filters: Filters) -> pa.Table:
    """Rows of view `curve` with `params_non_embedding`: each task by its own loss where that was measured, else by the held-out
    loss, else by the only one there is. Metrics that serve as gauges come along, whatever `filters.metric` says.

    Raises UserError when a task has several other losses and no filter chooses one.
    """
    wanted = filters.columns()
    if "metric" in wanted:
        wanted["metric"] = [*wanted["metric"], *_GAUGES]
    where = " AND ".join(f"c.{name} IN ({', '.join('?' for _ in values)})" for name, values in wanted.items()) or "true"
    given = [value for values in wanted.values() for value in values]
    axes = stored.query(f"SELECT DISTINCT study, task, format, loss_dataset, loss_unit FROM curve AS c WHERE {where}", given).to_pylist()
    if not axes:
        stored.curve(**wanted)  # says which filter matches nothing
        raise UserError(f"{stored} holds no checkpoint with both a loss and a score.", "Run or evaluate a study into it first.")
    losses: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for row in axes:
        losses.setdefault((row["study"], row["task"], row["format"]), []).append((row["loss_dataset"], row["loss_unit"]))
    chosen = sorted((*curve, *axis) for curve, offered in losses.items() for axis in _axis(curve, offered, "loss_dataset" in wanted))
    names = ", ".join("(?, ?, ?, ?, ?)" for _ in chosen)
    flat = [part for axis in chosen for part in axis]
    return stored.query(
        "SELECT c.*, r.params_non_embedding FROM curve AS c LEFT JOIN runs AS r USING (run_id)"
        f" WHERE {where} AND (c.study, c.task, c.format, c.loss_dataset, c.loss_unit) IN ({names})",
        [*given, *flat],
    )


def _axis(curve: tuple[str, str, str], offered: Sequence[tuple[str, str]], filtered: bool) -> list[tuple[str, str]]:
    """The losses by which a curve is forecast: those that were asked for, or one that needs no asking."""
    if filtered:
        return list(offered)
    for wanted in (curve[1], "heldout"):
        named = sorted(axis for axis in offered if axis[0] == wanted)
        if named:
            return [next((axis for axis in named if axis[1] in ("bits/byte", "nats/token")), named[0])]
    if len(offered) == 1:
        return list(offered)
    there = ", ".join(sorted({dataset for dataset, _ in offered}))
    raise UserError(f"{curve[1]} was measured beside several losses.", f"Choose one with --loss-dataset: {there}.")


def _without(rows: pa.Table, globs: Sequence[str]) -> pa.Table:
    if not globs:
        return rows
    names = pc.unique(rows["run_id"].drop_null()).to_pylist()
    left = [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]
    if not left:
        raise UserError(f"No run is called {' or '.join(globs)}.", f"There are: {', '.join(sorted(names))}.")
    return rows.filter(pc.invert(pc.is_in(rows["run_id"], pa.array(left))))


def told(choices: Mapping[str, Choice]) -> list[str]:
    """For each pool: the error of the methods inside the ladder, and which were kept."""
    lines = []
    for pool, choice in choices.items():
        if not choice.errors:
            lines.append(f"{pool}: too few sizes to try methods on, so all are averaged")
            continue
        kept = {method.name for method in choice.kept}
        best = list(choice.errors.items())[: max(len(kept) + 2, 6)]
        inside = f"{100 * (choice.error or 0):.2f} points, {100 * (choice.coverage or 0):.0f} % within the interval"
        lines.append(f"{pool}: inside the ladder, the mean of {len(kept)} methods missed by {inside}")
        lines += [f"    {100 * error:5.2f} {'kept' if name in kept else '    '} {name}" for name, error in best]
    return lines


def summary(found: pa.Table) -> list[str]:
    """Mean absolute error in points for each target, of the forecast and its rivals, over scores that can be forecast."""
    rows = [row for row in found.to_pylist() if row["error_points"] is not None]
    lines = []
    for target in sorted({row["target"] for row in rows}):
        mine = [row for row in rows if row["target"] == target]
        sound = [row for row in mine if row["forecastable"]] or mine
        errors = {name: _missed(sound, name) for name in ("predicted", "two_stage", "one_stage", "linear", "constant")}
        inside = sum(row["predicted_low"] <= row["actual"] <= row["predicted_high"] for row in sound)
        figures = ", ".join(f"{name} {error:.2f}" for name, error in errors.items() if error is not None)
        lines.append(f"{target}: mean absolute error in points: {figures}; {inside} of {len(sound)} within the 80 % interval")
    return lines


def _missed(rows: Sequence[Mapping[str, float | None]], name: str) -> float | None:
    pairs = [(row[name], row["actual"]) for row in rows]
    known = [abs(told - actual) for told, actual in pairs if told is not None and actual is not None]
    return 100 * sum(known) / len(known) if known and len(known) == len(pairs) else None
