"""What a property of runs adds to performance at equal position on an axis: one smooth curve, an effect, runs that differ.

    y = f(x) + z (g_1 h_1(x) + g_2 h_2(x) + g_3 h_3(x)) + own(run, x) + e

f is monotone (`monotone.py`), z the property (0 to 1), h_k are hats around three places of the range that all that is compared
covers, so the effect may differ along the curve; own(run, x) is drawn anew for each run (`mixed.py`).

N points of R runs; x rises with training, whatever the axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from losslens.analysis import mixed, monotone
from losslens.analysis.curves import Bools, Floats, Ints

PLACES = 3  # of the effect along the curve
_OWN_PLACES = 5  # of what a run has of its own
MIN_RUNS = 3  # one more than the parameters that only runs inform: level and effect
_DRAWS = 4000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """N checkpoints in the order of runs; arrays of shape [N]. `z` belongs to the run, `weight` is 1 / variance."""

    x: Floats
    value: Floats
    weight: Floats
    run: Ints
    z: Floats

    def only(self, chosen: Bools) -> Points:
        """The chosen ones."""
        return Points(self.x[chosen], self.value[chosen], self.weight[chosen], self.run[chosen], self.z[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class Effect:
    """In the unit of `value`: the mean over the three places with its 95 % interval, and at each place (shape [3]) with intervals
    that hold all three at once with 95 %."""

    mean: float
    mean_low: float
    mean_high: float
    place: Floats
    at: Floats
    at_low: Floats
    at_high: Floats
    run_spread: float


@dataclass(frozen=True, slots=True)
class Compared:
    """What went into a comparison, and what came out; `reason` tells why there is no effect."""

    n_checkpoints: int
    n_runs: int
    effect: Effect | None = None
    reason: str | None = None


def effect_of(points: Points) -> Compared:
    """The effect of z from 0 to 1, from the checkpoints in the range of x that at least two values of z cover."""
    inside = _shared_range(points)
    if inside is None:
        return Compared(len(points.x), len(np.unique(points.run)), reason="no two of them were measured in the same range")
    within = points.only((points.x >= inside[0]) & (points.x <= inside[1]))
    compared = Compared(len(within.x), len(np.unique(within.run)))
    if compared.n_runs < MIN_RUNS:
        return replace(compared, reason=f"{compared.n_runs} runs in the common range: {MIN_RUNS} tell a difference from chance")
    if np.ptp(within.value) == 0:
        return replace(compared, reason="all scores in the common range are equal")
    rising = monotone.splines(within.x, within.value, within.weight)
    along = _hats(within.x, PLACES) * within.z[:, None]
    chosen = monotone.used(rising, along, within.value, within.weight)
    design = np.column_stack([np.ones(len(within.x)), rising[:, chosen], along])
    if len(within.x) < design.shape[1] + MIN_RUNS:
        return replace(compared, reason=f"{len(within.x)} checkpoints in the common range are too few for a curve")
    fit = mixed.fit(design, _hats(within.x, _OWN_PLACES), within.value, within.weight, within.run)
    freedom = min(compared.n_runs - 2, len(within.x) - design.shape[1])
    return replace(compared, effect=_effect(fit, _places(within.x, PLACES), freedom))


def _shared_range(points: Points) -> tuple[float, float] | None:
    """From the first to the last x that lies between the ends of at least two values of z; None where there is none."""
    x = np.unique(points.x)
    covered = np.zeros(len(x), dtype=np.int64)
    for z in np.unique(points.z):
        own = points.x[points.z == z]
        covered += (x >= own.min()) & (x <= own.max())
    shared = x[covered >= 2]
    return (float(shared[0]), float(shared[-1])) if len(shared) and shared[-1] > shared[0] else None


def _places(x: Floats, count: int) -> Floats:
    """Between even places and places with as many points on either side: neither empty stretches nor crowds decide alone."""
    share = (np.arange(count) + 0.5) / count
    even = x.min() + share * np.ptp(x)
    return np.asarray((np.quantile(x, share) + even) / 2)


def _hats(x: Floats, count: int) -> Floats:
    """Piecewise linear functions, each 1 at one place and 0 at the others; their sum is 1. Shape [N, count]."""
    places = _places(x, count)
    return np.column_stack([np.interp(x, places, row) for row in np.eye(count)])


def _effect(fit: mixed.Fit, place: Floats, freedom: int) -> Effect:
    at, covariance = fit.estimate[-PLACES:], fit.covariance[-PLACES:, -PLACES:]
    mean, error = float(at.mean()), float(np.sqrt(covariance.mean()))
    single = float(stats.t.ppf((1 + _LEVEL) / 2, freedom))
    band = _simultaneous(covariance, freedom, at_least=single) * np.sqrt(covariance.diagonal())
    return Effect(mean, mean - single * error, mean + single * error, place, at, at - band, at + band, fit.run_spread)


def _simultaneous(covariance: Floats, freedom: int, at_least: float) -> float:
    """How many standard errors hold all estimates at once: the quantile of the largest of correlated t variables."""
    deviation = np.sqrt(covariance.diagonal())
    correlation = covariance / np.outer(deviation, deviation)
    random = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(correlation)
    normal = random.standard_normal((_DRAWS, len(deviation))) * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    largest = np.abs(normal).max(axis=1) / np.sqrt(random.chisquare(freedom, _DRAWS) / freedom)
    return max(float(np.quantile(largest, _LEVEL)), at_least)
