"""The interval of eta: what one curve's likelihood allows, how far runs disagree, and whether resamples vary more than that.

Runs of a study need not leave chance at exactly the same loss. Each run's own shift along the loss is estimated beside the
fit that all share, drawn towards 0 as far as its own checkpoints cannot tell it, and the fit is repeated on losses without
the shifts. Their standard deviation, the spread, is not known either: it enters by its likelihood, 0 included.

N checkpoints, R runs, D shifts, T spreads, B resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from losslens.analysis import onset
from losslens.analysis.curves import Curve, Floats, Ints
from losslens.analysis.onset import Fit
from losslens.analysis.resampling import block_weights

_ROUNDS = 3  # of shifts and fit in turn; more change nothing in the third digit
_SHIFTS = np.sinh(np.linspace(-4, 4, 81)) / np.sinh(4) / 4  # in parts of the range, dense near 0
_SPREADS = np.r_[0.0, np.geomspace(1 / 400, 1 / 8, 12)]  # in parts of the range
_SHARED = 0.2  # prior probability that runs share eta exactly, the claim of the paper; the rest is even over log spread
_KEPT = 8  # (w, k) that resamples choose from at each eta: the best on the data themselves
_TINY = 1e-14


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """A threshold with its 95 % interval, and the expected spread of eta between runs (its root mean square)."""

    eta: float
    low: float
    high: float
    spread: float
    dispersion: float


@dataclass(frozen=True, slots=True, eq=False)
class _Aligned:
    """`curve` has the losses without the shifts of the runs; `likelihood` [T] of `spreads` sums to 1."""

    curve: Curve
    fit: Fit
    spreads: Floats
    likelihood: Floats


def interval(curve: Curve, fit: Fit, bound: float, *, bootstrap: int, seed: int) -> Interval:
    """Eta of all runs together: the median of its likelihood between its 2.5 % and 97.5 % points."""
    found = _align(curve, fit, bound)
    eta = float(found.fit.quantile(0.5))
    even, runs = (np.arange(60) + 0.5) / 60, len(np.unique(curve.run))
    around = (found.fit.quantile(even) - eta) * _stretch(found, bound, bootstrap, seed)
    between = np.multiply.outer(found.spreads / math.sqrt(runs), stats.norm.ppf(even))
    low, high = _quantiles(np.add.outer(between, around), found.likelihood)
    return Interval(eta, eta + low, eta + high, math.sqrt(float(found.likelihood @ found.spreads**2)), found.fit.dispersion)


def _quantiles(values: Floats, likelihood: Floats) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points of `values` [T, ...], each slice weighted by its likelihood."""
    weights = np.repeat(likelihood, values[0].size) / values[0].size
    order = values.ravel().argsort()
    low, high = np.interp([0.025, 0.975], np.cumsum(weights[order]) - weights[order] / 2, values.ravel()[order])
    return float(low), float(high)


def _align(curve: Curve, fit: Fit, bound: float) -> _Aligned:
    names, run = np.unique(curve.run, return_inverse=True)
    spreads = _SPREADS * float(np.ptp(curve.loss))
    if len(names) == 1:
        return _Aligned(curve, fit, np.zeros(1), np.ones(1))
    shift: Floats = np.zeros(len(names))
    likelihood: Floats = np.ones(1)
    aligned = curve
    for _ in range(_ROUNDS):
        own, variance = _own_shifts(aligned, fit, run)
        own += shift
        likelihood = _spread_likelihood(own, variance, spreads)
        belief = likelihood @ (spreads[:, None] ** 2 / (spreads[:, None] ** 2 + variance + _TINY))
        common = np.average(own, weights=1 / (variance + likelihood @ spreads**2))
        shift = belief * (own - common)
        aligned = replace(curve, loss=curve.loss - shift[run])
        fit = onset.refit(aligned, fit, bound)
    return _Aligned(aligned, fit, spreads, likelihood)


def _own_shifts(curve: Curve, fit: Fit, run: Ints) -> tuple[Floats, Floats]:
    """By how much each run's eta lies above the common one: mean and variance under the best common shape; each [R]."""
    squares = _shifted_squares(curve, fit, run)
    shifts = _SHIFTS * float(np.ptp(curve.loss))
    freedom = max(len(curve.loss) - onset.PARAMETERS - len(squares), 3)
    dispersion = max(float(squares.min(axis=1).sum()) / freedom, 1.0)
    likelihood = np.exp(-(squares - squares.min(axis=1, keepdims=True)) / (2 * dispersion)) * np.gradient(shifts)
    likelihood /= likelihood.sum(axis=1, keepdims=True)
    mean = likelihood @ shifts
    return mean, (likelihood * (shifts - mean[:, None]) ** 2).sum(axis=1)


def _shifted_squares(curve: Curve, fit: Fit, run: Ints) -> Floats:
    """Weighted squares of each run when the best common shape is shifted; shape [R, D]."""
    eta, width, power = np.unravel_index(int(fit.log_likelihood.argmax()), fit.log_likelihood.shape)
    best = int(fit.log_likelihood.argmax())
    base, jump, rise = (float(part[best, 0]) for part in (fit.solution.base, fit.solution.jump, fit.solution.rise))
    below = fit.eta[eta] + _SHIFTS[:, None] * float(np.ptp(curve.loss)) - curve.loss
    smooth = -np.expm1(-((np.maximum(below, 0.0) / fit.widths[width]) ** onset.POWERS[power]))
    misfit = ((base + np.where(below > 0, jump + rise * smooth, 0.0) - curve.gain) / curve.noise) ** 2
    return np.stack([misfit[:, run == number].sum(axis=1) for number in range(run.max() + 1)])


def _spread_likelihood(own: Floats, variance: Floats, spreads: Floats) -> Floats:
    """Of each spread, given shifts [R] known to `variance`, their mean unknown; with the prior, sums to 1."""
    prior = np.r_[_SHARED, np.full(len(spreads) - 1, (1 - _SHARED) / (len(spreads) - 1))]
    weight = 1 / (variance + spreads[:, None] ** 2 + _TINY)  # [T, R]
    mean = (weight * own).sum(axis=1) / weight.sum(axis=1)
    squares = (weight * (own - mean[:, None]) ** 2).sum(axis=1)
    logarithm = (np.log(weight).sum(axis=1) - np.log(weight.sum(axis=1)) - squares) / 2
    relative = prior * np.exp(logarithm - logarithm.max())
    likelihood: Floats = relative / relative.sum()
    return likelihood


def _stretch(found: _Aligned, bound: float, bootstrap: int, seed: int) -> float:
    """How much more eta varies between resamples of runs and blocks of checkpoints than its likelihood says; at least 1."""
    if not bootstrap:
        return 1.0
    return max(float(np.std(resampled_etas(found.curve, found.fit, bound, count=bootstrap, seed=seed))) / found.fit.sd(), 1.0)


def resampled_etas(curve: Curve, fit: Fit, bound: float, *, count: int, seed: int) -> Floats:
    """The eta of each of `count` resamples of runs and, within runs, of blocks; shape [B]."""
    return weighted_etas(curve, fit, bound, block_weights(curve.run, count=count, seed=seed))


def weighted_etas(curve: Curve, fit: Fit, bound: float, drawn: Floats) -> Floats:
    """The eta of each resample, given how often it holds each checkpoint, [B, N]; shape [B]."""
    etas, each = len(fit.eta), fit.log_likelihood[0].size
    kept = fit.log_likelihood.reshape(etas, each).argpartition(-_KEPT, axis=1)[:, -_KEPT:] + each * np.arange(etas)[:, None]
    rise = onset.rises(fit.eta, fit.widths, curve.loss)[kept.ravel()]
    weights = (drawn / curve.noise**2).T
    price = math.log(len(curve.loss)) * fit.dispersion
    cost = onset.solve(rise, fit.eta, curve, weights, bound, price).cost
    freedom = max(len(curve.loss) - onset.PARAMETERS, 3)
    by_eta = np.exp(onset.log_likelihood(cost, fit.dispersion, freedom)).reshape(etas, _KEPT, len(drawn)).sum(axis=1)
    below = np.cumsum(by_eta, axis=0) / by_eta.sum(axis=0)
    medians: Floats = fit.eta[(below < 0.5).sum(axis=0)]
    return medians
