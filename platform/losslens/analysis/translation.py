"""From one loss to another: L1 = K (L0 - E0)^kappa + E1 (Brandfonbrener et al. 2024, arXiv 2411.12925), through checkpoints that have both.

It moves a threshold from one validation set, unit or tokenizer to another, with the errors of the law and of the threshold. The law is
fitted to the half of the checkpoints about the threshold: over all of a training the losses bend away from such a law.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats
from scipy.optimize import least_squares

from losslens.analysis.axes import Axis
from losslens.analysis.curves import Floats, Ints
from losslens.analysis.resampling import block_weights
from losslens.errors import UserError

MIN_PAIRS = 8
_RESAMPLES = 200
_WINDOWS = 40  # places where a half of the checkpoints may begin, so that near thresholds share a law
_OFFSETS = np.concatenate([[0.0], np.geomspace(1e-3, 10.0, 24)])  # of E0 below the lowest L0, in parts of the range
_POWERS = np.geomspace(0.25, 4.0, 33)
_BOUNDS = ([1e-12, -np.inf, 0.05, -np.inf], [np.inf, np.inf, 20.0, np.inf])

COLUMNS = pa.schema(
    [("study", pa.string()), ("task", pa.string()), ("format", pa.string()), ("shots", pa.int64()), ("metric", pa.string())]
    + [(name, pa.string()) for name in ("loss_dataset", "loss_unit", "to_study", "to_dataset", "to_unit")]
    + [(name, pa.float64()) for name in ("eta", "eta_low", "eta_high", "translated", "translated_low", "translated_high")]
    + [("direct", pa.float64()), ("direct_low", pa.float64()), ("direct_high", pa.float64())]
    + [("law", pa.string()), ("law_error", pa.float64()), ("unseen_error", pa.float64()), ("in_range", pa.bool_())]
    + [("n_checkpoints", pa.int64()), ("n_runs", pa.int64())]
)


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """L1 of L0. `parameters` are K, E0, kappa, E1; each of `resampled`, shape [200, 4], from a resample of runs and blocks.

    `error` is the root mean square distance of L1, `unseen_error` that of runs that a fit has not seen (None with fewer than 2).
    """

    parameters: Floats
    resampled: Floats
    lowest: float
    highest: float
    error: float
    unseen_error: float | None
    n_checkpoints: int
    n_runs: int

    def at(self, loss: float) -> float:
        """L1 at L0."""
        return float(_at(self.parameters, np.asarray([loss]))[0])

    def drawn_at(self, loss: Floats) -> Floats:
        """L1 at one L0 for each resample; both of shape [200]."""
        return _at(self.resampled, loss)

    def __str__(self) -> str:
        scale, origin, power, end = self.parameters
        return f"{scale:.4g} (L - {origin:.4g})^{power:.4g} + {end:.4g}"


def law_between(source: Floats, target: Floats, run: Ints, *, seed: int = 0) -> Law:
    """The law through N pairs of losses of the same checkpoints; `run` is sorted, within a run pairs are in the order of training.

    Raises:
        UserError: fewer than 8 different pairs.
    """
    if min(len(np.unique(source)), len(np.unique(target))) < MIN_PAIRS:
        raise UserError(
            f"{len(source)} checkpoints have both losses, and a law between them needs {MIN_PAIRS} that differ.",
            "Measure both on more checkpoints: `losslens evaluate DIR --loss NAME=PATH`.",
        )
    best = _refined(source, target, _started(source, target))
    runs = np.unique(run)
    without = (run != runs[:, None]).astype(np.float64)
    unseen = None
    if len(runs) > 1:
        fits = _resampled(source, target, without, best)
        left = [np.mean((_at(fit, source[run == one]) - target[run == one]) ** 2) for one, fit in zip(runs, fits, strict=True)]
        unseen = float(np.sqrt(np.mean(left)))
    return Law(
        parameters=best,
        resampled=_resampled(source, target, block_weights(run, count=_RESAMPLES, seed=seed), best),
        lowest=float(source.min()),
        highest=float(source.max()),
        error=float(np.sqrt(np.mean((_at(best, source) - target) ** 2))),
        unseen_error=unseen,
        n_checkpoints=len(source),
        n_runs=len(runs),
    )


def translate(thresholds: pa.Table, losses: pa.Table, to: Axis, to_study: str | None = None) -> pa.Table:
    """Each emergent threshold of another loss in rows of view `thresholds`, as a loss `to`; columns: `COLUMNS`.

    `losses` has study, run_id, checkpoint_id, tokens, dataset, unit, value. With `to_study` the threshold goes to the loss of that
    study: through bits/byte of the same data set, which no tokenizer changes. `direct` is the threshold found on that loss itself.

    Raises:
        UserError: too few checkpoints have both losses.
    """
    rows = [row for row in thresholds.to_pylist() if row["verdict"] == "emergent"]
    direct = {_score(row): row for row in rows if Axis(row["loss_dataset"], row["loss_unit"]) == to}
    known: dict[Any, list[_Pairs]] = {}
    found = []
    for row in rows:
        source, study = Axis(row["loss_dataset"], row["loss_unit"]), row["study"]
        goal = to_study if to_study is not None else study
        if source == to and goal == study:
            continue
        if (study, source) not in known:
            known[study, source] = _pairs_between(losses, study, source, goal, to)
        found.append(_translated(row, known[study, source], to, goal, direct.get((goal, *_score(row)[1:]), {})))
    return pa.Table.from_pylist(found, schema=COLUMNS)


def _score(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("study", "task", "format", "shots", "metric"))


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Two losses of the same checkpoints, in the order of runs and of training."""

    source: Floats
    target: Floats
    run: Ints
    laws: dict[int, Law] = field(default_factory=dict)

    def law_about(self, loss: float) -> Law:
        """The law through the half with about as many checkpoints above as below, or through all where half would be too few."""
        order = np.argsort(self.source, kind="stable")
        half, grain = max(len(order) // 2, 2 * MIN_PAIRS), max(len(order) // _WINDOWS, 1)
        middle = int(np.searchsorted(self.source[order], loss))
        start = max(min(middle - half // 2, len(order) - half), 0) // grain * grain
        if start not in self.laws:
            near = np.sort(order[start : start + half])
            self.laws[start] = law_between(self.source[near], self.target[near], self.run[near])
        return self.laws[start]


def _pairs_between(losses: pa.Table, study: str | None, source: Axis, goal: str | None, to: Axis) -> list[_Pairs]:
    """What to go through: one step within a study; two by way of bits/byte to another."""
    if goal == study:
        return [_pairs(losses, study, source, to)]
    steps = [source, Axis(to.dataset, "bits/byte"), to]
    return [_pairs(losses, name, *step) for name, step in zip((study, goal), pairwise(steps), strict=True) if step[0] != step[1]]


def _pairs(losses: pa.Table, study: str | None, source: Axis, to: Axis) -> _Pairs:
    pairs: dict[str, dict[Axis, float]] = {}
    place: dict[str, tuple[str, float]] = {}
    for row in losses.to_pylist():
        axis = Axis(row["dataset"], row["unit"])
        if row["study"] == study and axis in (source, to) and row["tokens"] != 0 and np.isfinite(row["value"]):
            pairs.setdefault(row["checkpoint_id"], {})[axis] = row["value"]
            place[row["checkpoint_id"]] = (str(row["run_id"]), row["tokens"] or 0.0)
    both = sorted((name for name, values in pairs.items() if len(values) == 2), key=lambda name: place[name])
    source_values, to_values = (np.asarray([pairs[name][axis] for name in both]) for axis in (source, to))
    run = np.unique([place[name][0] for name in both], return_inverse=True)[1] if both else np.empty(0, dtype=np.int64)
    return _Pairs(source_values, to_values, np.asarray(run, dtype=np.int64))


def _translated(row: dict[str, Any], steps: list[_Pairs], to: Axis, goal: str | None, direct: dict[str, Any]) -> dict[str, Any]:
    eta = float(row["eta"])
    drawn = _drawn(eta, row["eta_low"], row["eta_high"])
    inside = True
    laws = []
    for number, step in enumerate(steps):
        law = step.law_about(eta)
        laws.append(law)
        inside = inside and law.lowest <= eta <= law.highest
        scatter = (law.error if law.unseen_error is None else law.unseen_error) * _normal(1 + number)
        eta, drawn = law.at(eta), law.drawn_at(drawn) + scatter
    names = ("study", "task", "format", "shots", "metric", "loss_dataset", "loss_unit", "eta", "eta_low", "eta_high")
    low, high = np.quantile(drawn, [0.025, 0.975])
    unseen = [law.unseen_error for law in laws if law.unseen_error is not None]
    return {name: row[name] for name in names} | {
        "to_study": goal,
        "to_dataset": to.dataset,
        "to_unit": to.unit,
        "translated": eta,
        "translated_low": min(float(low), eta),
        "translated_high": max(float(high), eta),
        "direct": direct.get("eta"),
        "direct_low": direct.get("eta_low"),
        "direct_high": direct.get("eta_high"),
        "law": ", then ".join(map(str, laws)),
        "law_error": float(np.hypot.reduce([law.error for law in laws])),
        "unseen_error": float(np.hypot.reduce(unseen)) if len(unseen) == len(laws) else None,
        "in_range": inside,
        "n_checkpoints": min(law.n_checkpoints for law in laws),
        "n_runs": min(law.n_runs for law in laws),
    }


def _drawn(eta: float, low: float, high: float) -> Floats:
    """Two half normals around eta whose 95 % lies from `low` to `high`; shape [200]."""
    normal = _normal(0) / stats.norm.ppf(0.975)
    return np.asarray(eta + np.where(normal < 0, normal * (eta - low), normal * (high - eta)))


def _normal(seed: int) -> Floats:
    """Even quantiles of the standard normal distribution in a fixed mixed order; shape [200]."""
    return np.asarray(stats.norm.ppf((np.random.default_rng(seed).permutation(_RESAMPLES) + 0.5) / _RESAMPLES))


def _at(parameters: Floats, loss: Floats) -> Floats:
    scale, origin, power, end = np.moveaxis(np.atleast_1d(parameters), -1, 0)
    return np.asarray(scale * np.maximum(loss - origin, 0.0) ** power + end)


def _started(source: Floats, target: Floats) -> Floats:
    """The best of a grid of E0 and kappa, given which K and E1 are linear."""
    origins = source.min() - np.ptp(source) * _OFFSETS
    origin, power = (grid.ravel() for grid in np.meshgrid(origins, _POWERS, indexing="ij"))
    return np.asarray(_linear(source, target, np.ones((1, len(source))), origin, power)[0])


def _refined(source: Floats, target: Floats, start: Floats) -> Floats:
    """Least squares in all four parameters; E0 stays at or below the lowest source."""
    upper = [_BOUNDS[1][0], float(source.min()), *_BOUNDS[1][2:]]
    inside = np.clip(start, _BOUNDS[0], upper)
    scale = np.maximum(np.abs(inside), 1e-3)
    fit = least_squares(lambda tried: _at(tried, source) - target, inside, bounds=(_BOUNDS[0], upper), x_scale=scale, max_nfev=300)
    return np.asarray(fit.x)


def _resampled(source: Floats, target: Floats, weights: Floats, best: Floats) -> Floats:
    """The law of each weighting, E0 and kappa from a grid about the best and over all of it; shape [B, 4]."""
    below, span = float(source.min() - best[1]), float(np.ptp(source))
    offsets = np.union1d(span * _OFFSETS[::4], np.maximum(below, 1e-4 * span) * np.geomspace(0.25, 4.0, 9))
    powers = np.union1d(_POWERS[::4], best[2] * np.geomspace(0.7, 1.4, 11))
    origin, power = (grid.ravel() for grid in np.meshgrid(source.min() - offsets, powers, indexing="ij"))
    return _linear(source, target, weights, origin, power)


def _linear(source: Floats, target: Floats, weights: Floats, origin: Floats, power: Floats) -> Floats:
    """For each of B weightings the best of C candidates (origin, power) with its K >= 0 and E1; shape [B, 4]."""
    shape = (source - origin[:, None]) ** power[:, None]
    shape /= np.abs(shape).max(axis=1, keepdims=True)
    total, first = weights.sum(axis=1), weights @ target
    s, ss, sy = shape @ weights.T, shape**2 @ weights.T, (shape * target) @ weights.T
    spread = ss - s**2 / total
    scale = np.maximum(np.divide(sy - s * first / total, spread, out=np.zeros_like(s), where=spread > 1e-12 * ss), 0.0)
    explained = scale * (2 * (sy - s * first / total) - scale * spread)
    best = explained.argmax(axis=0)
    each = np.arange(len(weights))
    chosen = scale[best, each]
    end = (first - chosen * s[best, each]) / total
    largest = np.abs(source - origin[best][:, None]).max(axis=1) ** power[best]
    return np.column_stack([chosen / largest, origin[best], power[best], end])
