"""Scores of models that the ladder does not hold: forecast, interval, rivals. docs/FORECASTS.md says why it is done this way.

The ladder alone decides how: prefixes of its sizes forecast its larger sizes with every method (`choice`), and what a target
scored is read only after its forecast is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from losslens.analysis.choice import Choice, choose, half_width, mean, trials
from losslens.analysis.curves import Bools, Floats
from losslens.analysis.ladder import Ladder, ladders
from losslens.analysis.methods import ONE_STAGE_RIVAL, Fitter, Method, constant, linear, published, trust
from losslens.errors import UserError
from losslens.results.tables import FORECASTS

_RESAMPLES = 16  # of runs
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """A model to forecast: held out of the study, or, with `run` None, not trained yet."""

    params: float
    tokens: float
    run: str | None = None

    @property
    def name(self) -> str:
        """The run, or what it would be."""
        return self.run or f"N={self.params:.4g} D={self.tokens:.4g}"


def forecasts(
    curve: pa.Table,
    *,
    hold_out: Sequence[str] = ("largest",),
    target: Target | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> tuple[pa.Table, dict[str, Choice]]:
    """Forecasts for every ladder in rows of view `curve`, and how the methods were chosen, by pool.

    `hold_out` names sizes or runs to forecast ("largest": the largest size) and is ignored when `target`, a model not
    trained yet, is given. `metrics` limits what is forecast; other metrics then serve as gauges only. Columns:
    `losslens.results.tables.FORECASTS`. Raises UserError when nothing is left to learn from or to forecast.
    """
    asked = [found for found in ladders(curve) if metrics is None or found.key.metric in metrics]
    if target is None:
        _require_known(asked, hold_out)
    split = [(found, _held_out(found, hold_out) if target is None else np.zeros(len(found.runs), bool)) for found in asked]
    usable = [(found, held) for found, held in split if (held.any() or target) and not held.all()]
    if not usable:
        raise UserError("No score has both runs to learn from and a run to forecast.", "Hold out fewer sizes, or drop a filter.")
    pools: dict[str, list[tuple[Ladder, Ladder]]] = {}
    for found, held in usable:
        pools.setdefault(_pool(found), []).append((found.only(~held), found.only(held)))
    total, rows, choices, done = sum(len(pool) for pool in pools.values()), [], {}, 0
    for name, pool in pools.items():
        tried = []
        for known, _ in pool:
            progress(done, 2 * total, f"choosing: {known.key.task} {known.key.metric}")
            tried.append(trials(known))
            done += 1
        choices[name] = choose([known for known, _ in pool], tried)
        for known, unknown in pool:
            progress(done, 2 * total, f"forecasting: {known.key.task} {known.key.metric}")
            rows += _rows(known, unknown, target, choices[name], seed)
            done += 1
    progress(2 * total, 2 * total, "")
    return pa.Table.from_pylist(rows, schema=FORECASTS), choices


def _require_known(asked: Sequence[Ladder], hold_out: Sequence[str]) -> None:
    sizes = {size: params for ladder in asked for size, params in zip(ladder.sizes, ladder.params, strict=True)}
    known = {"largest", *sizes, *(run for ladder in asked for run in ladder.runs)}
    for name in hold_out:
        if name not in known:
            there = ", ".join(sorted(sizes, key=lambda size: float(sizes[size])))
            raise UserError(f"No size or run is called {name}.", f"There are: largest, {there}, and the names of runs.")


def _held_out(ladder: Ladder, names: Sequence[str]) -> Bools:
    largest = ladder.params == ladder.params.max()
    chosen = [run in names or size in names for run, size in zip(ladder.runs, ladder.sizes, strict=True)]
    held: Bools = np.asarray(chosen) | (largest & ("largest" in names))
    return held


def _pool(ladder: Ladder) -> str:
    return " ".join(str(part) for part in (ladder.key.study, ladder.key.format, ladder.key.metric, "by", "+".join(ladder.gauges)) if part)


def _resampled(ladder: Ladder, fitter: Fitter, kept: Sequence[Method], targets: Floats, seed: int) -> Floats:
    """Spread [T] of the kept methods' mean over resamples of runs: half the way between its 16 % and 84 % points."""
    random = np.random.default_rng(seed)
    count = len(ladder.runs)
    means = []
    for weights in random.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(np.float64):
        again = Fitter(ladder, weights, fitter)
        means.append(mean(kept, {method.name: again.gains(method, targets) for method in kept}))
    low, high = np.nanquantile(np.stack(means), [0.16, 0.84], axis=0)
    return np.asarray(np.nan_to_num((high - low) / 2))


def _rows(known: Ladder, unknown: Ladder, target: Target | None, choice: Choice, seed: int) -> list[dict[str, Any]]:
    """The forecasts of one ladder, one row a target."""
    wanted = [target] if target else [Target(n, d, run) for n, d, run in zip(unknown.params, unknown.tokens, unknown.runs, strict=True)]
    targets = np.array([[one.params for one in wanted], [one.tokens for one in wanted]])
    fitter, rival, now = Fitter(known), published(known.gauges), datetime.now(UTC)
    gains = {method.name: fitter.gains(method, targets) for method in choice.kept}
    middle = mean(choice.kept, gains)
    half = half_width(known, choice.kept, gains, _resampled(known, fitter, choice.kept, targets, seed))
    told = {
        "predicted": middle,
        "predicted_low": middle - half if known.room > 0 else middle + half,
        "predicted_high": middle + half if known.room > 0 else middle - half,
        "constant": constant(known, targets),
        "linear": linear(known, targets),
        "one_stage": fitter.gains(ONE_STAGE_RIVAL, targets),
        "two_stage": Fitter(known, every=True).gains(rival, targets),
    }
    scores = {name: known.score(np.clip(values, -np.inf, 1.0)) for name, values in told.items()}
    reason, kept = trust(known), "; ".join(method.name for method in choice.kept)
    shared = known.key._asdict() | {"forecastable": not reason, "reason": reason or None, "n_runs": len(known.runs)}
    shared |= {"n_checkpoints": known.n_checkpoints, "method": f"mean/1 of {kept}; {_RESAMPLES} resamples, seed {seed}", "computed_at": now}
    rows = []
    for place, one in enumerate(wanted):
        actual = None if target else float(unknown.score(unknown.gain)[place])
        figures = {name: float(values[place]) if np.isfinite(values[place]) else None for name, values in scores.items()}
        missed = None if actual is None or figures["predicted"] is None else 100 * (figures["predicted"] - actual)
        rows.append(
            shared | figures | {"target": one.name, "params": one.params, "tokens": one.tokens, "actual": actual, "error_points": missed}
        )
    return rows
