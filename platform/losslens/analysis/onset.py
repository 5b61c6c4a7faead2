"""Where a curve leaves chance: nested models of performance against loss, fitted to all runs at once.

    flat        y = b
    onset       y = b                                                        for loss >= eta
                y = b + j + a (1 - exp(-((eta - loss) / w)^k))               for loss < eta

with j, a >= 0, at least one of them above 0, k one of `POWERS`, and b at most a given bound: what is more than that above
chance is not absent. A curve that rises from its first checkpoint has its eta at or above the highest loss. Given (eta, w, k)
the model is linear in (b, j, a), so all candidates of a grid are solved at once by weighted least squares, and so are all
bootstrap resamples: a resample is a vector of weights, and the sums it needs are one matrix product.

N checkpoints, E etas, C candidates (eta, w, k) with eta varying slowest, B weightings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from losslens.analysis.curves import Curve, Floats

POWERS = (0.5, 1.0, 1.5, 2.0, 3.0)  # k: how steeply the rise starts, from at once to slowly
PARAMETERS = 5  # eta, w, k, b, and j or a
_WIDTHS = np.geomspace(1 / 20, 3.0, 12)  # w, in parts of the range of losses
_COARSE, _FINE = 60, 80  # etas over the whole range, then over those that the data allow
_BEYOND = 0.1  # how far above the highest loss eta may lie, in parts of the range
_NEGLIGIBLE = 8.0  # log-likelihood below the best at which an eta is not looked at again
_BLOCK = 5  # etas solved together, so that what they need stays in a core's cache
_TINY = 1e-12


class Solution(NamedTuple):
    """The best (b, j, a) of every candidate; arrays of shape [C, B]. `squares` are weighted squared residuals and `cost` the
    same plus the price of each of j and a that is above 0."""

    squares: Floats
    cost: Floats
    base: Floats
    jump: Floats
    rise: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What the data say of eta. `eta` has shape [E], evenly spaced; `likelihood` sums to 1 over it: for each eta the
    likelihood of the best (b, j, a), averaged over (w, k), or its logarithm for each of them in `log_likelihood` [E, w, k].

    `dispersion` is the weighted squared residual per degree of freedom, at least 1, by which all evidence is divided;
    `deviance` the drop of weighted squares from flat to the best onset in units of it.
    """

    eta: Floats
    log_likelihood: Floats
    solution: Solution  # shape [C, 1]
    widths: Floats
    dispersion: float
    deviance: float

    @property
    def likelihood(self) -> Floats:
        """Of each eta, every (w, k) alike; sums to 1."""
        by_eta = np.exp(self.log_likelihood).sum(axis=(1, 2))
        likelihood: Floats = by_eta / by_eta.sum()
        return likelihood

    def quantile(self, q: float | Floats) -> Floats:
        """The eta below which a share `q` of the likelihood lies."""
        below: Floats = np.interp(np.asarray(q), np.cumsum(self.likelihood) - self.likelihood / 2, self.eta)
        return below

    def sd(self) -> float:
        """Standard deviation of eta under its likelihood."""
        mean = self.likelihood @ self.eta
        return math.sqrt(float(self.likelihood @ (self.eta - mean) ** 2))


def fit(curve: Curve, bound: float) -> Fit:
    """Onset models whose base is at most `bound`. At least 3 checkpoints of at least 2 losses."""
    return refit(curve, rough(curve, bound), bound)


def rough(curve: Curve, bound: float) -> Fit:
    """The same over a coarse grid of etas: whether there is a rise, and where to look closer."""
    low, span = float(curve.loss.min()), float(np.ptp(curve.loss))
    return _fit(curve, np.linspace(low + span / 100, low + (1 + _BEYOND) * span, _COARSE), bound, dispersion=None)


def refit(curve: Curve, before: Fit, bound: float) -> Fit:
    """The same over a fine grid of the etas that `before` leaves possible."""
    likely = before.eta[before.log_likelihood.max(axis=(1, 2)) > -_NEGLIGIBLE]
    low, span, step = float(curve.loss.min()), float(np.ptp(curve.loss)), before.eta[1] - before.eta[0]
    first, last = max(likely.min() - step, low + span / 200), min(likely.max() + step, low + (1 + 1.5 * _BEYOND) * span)
    return _fit(curve, np.linspace(first, last, _FINE), bound, dispersion=before.dispersion)


def _fit(curve: Curve, etas: Floats, bound: float, dispersion: float | None) -> Fit:
    widths = _WIDTHS * float(np.ptp(curve.loss))
    weights = curve.noise[:, None] ** -2.0
    price = math.log(len(curve.loss)) * (dispersion or 1.0)
    blocks = np.split(etas, range(_BLOCK, len(etas), _BLOCK))
    parts = [solve(rises(block, widths, curve.loss), block, curve, weights, bound, price) for block in blocks]
    found = Solution(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    best = int(found.cost[:, 0].argmin())
    freedom = max(len(curve.loss) - PARAMETERS, 3)
    spread = max(float(found.squares[best, 0]) / freedom, 1.0)
    flat = float((weights[:, 0] * (curve.gain - np.average(curve.gain, weights=weights[:, 0])) ** 2).sum())
    return Fit(
        eta=etas,
        log_likelihood=log_likelihood(found.cost[:, 0], spread, freedom).reshape(len(etas), len(widths), len(POWERS)),
        solution=found,
        widths=widths,
        dispersion=spread,
        deviance=(flat - float(found.squares[best, 0])) / spread,
    )


def log_likelihood(cost: Floats, dispersion: float, freedom: int) -> Floats:
    """Relative to the best along the first axis: normal noise of known size, or Student's where its size is estimated."""
    worse: Floats = cost - cost.min(axis=0)
    if dispersion == 1.0:
        return -worse / 2
    return -freedom / 2 * np.log1p(worse / (freedom * dispersion))


def rises(etas: Floats, widths: Floats, loss: Floats) -> Floats:
    """The smooth part, from 0 at eta towards 1 as loss falls, of every candidate; shape [E * len(widths) * len(POWERS), N]."""
    below = np.maximum(etas[:, None] - loss, 0.0)[:, None, :] / widths[:, None]
    root, square = np.sqrt(below), below * below
    rise = np.empty((len(etas), len(widths), len(POWERS), len(loss)))
    for place, power in enumerate((root, below, below * root, square, square * below)):  # as POWERS, far faster than **
        np.exp(-power, out=rise[:, :, place])
    np.subtract(1.0, rise, out=rise)
    return rise.reshape(-1, len(loss))


def solve(rise: Floats, etas: Floats, curve: Curve, weights: Floats, bound: float, price: float) -> Solution:
    """The best (b, j, a) of every candidate under every weighting (shape [N, B]), with b <= bound, where each of j and a
    costs `price` to be above 0. Exact: the problem is convex, so a bound that the free base breaks is where it ends."""
    gain, each = curve.gain, len(rise) // len(etas)
    below = np.asarray(etas[:, None] > curve.loss, dtype=np.float64)
    total, first, second = weights.sum(axis=0), gain @ weights, gain**2 @ weights
    count, step = (np.repeat(part @ weights, each, axis=0) for part in (below, below * gain))
    s, ss, sy = rise @ weights, rise**2 @ weights, (rise * gain) @ weights
    mean = first / total
    free = _two(count - count**2 / total, s - count * s / total, ss - s**2 / total, step - count * mean, sy - s * mean, price)
    base = mean - (free.jump * count + free.rise * s) / total
    held = _two(count, s, ss, step - bound * count, sy - bound * s, price)
    over = base > bound
    drop, paid, jump, slope = (np.where(over, h, f) for h, f in zip(held, free, strict=True))
    squares = second - drop - np.where(over, 2 * bound * first - bound**2 * total, total * mean**2)
    return Solution(squares, squares + paid, np.where(over, bound, base), jump, slope)


class _Two(NamedTuple):
    drop: Floats
    paid: Floats
    jump: Floats
    rise: Floats


def _two(g11: Floats, g12: Floats, g22: Floats, c1: Floats, c2: Floats, price: float) -> _Two:
    """Least squares for two coefficients that may not be negative, with normal equations (g11 g12; g12 g22) x = (c1, c2): how
    far the squares drop, net of `price` a coefficient, under the best of: only the first, only the second, both."""
    one = np.divide(np.maximum(c1, 0.0), g11, out=np.zeros_like(c1), where=g11 > _TINY)
    two = np.divide(np.maximum(c2, 0.0), g22, out=np.zeros_like(c2), where=g22 > _TINY)
    first, second = one * c1, two * c2
    determinant = g11 * g22 - g12**2
    solvable = determinant > 1e-9 * g11 * g22 + _TINY**2
    x = np.divide(c1 * g22 - c2 * g12, determinant, out=np.zeros_like(c1), where=solvable)
    y = np.divide(c2 * g11 - c1 * g12, determinant, out=np.zeros_like(c1), where=solvable)
    together = np.where((x > 0) & (y > 0), x * c1 + y * c2, 0.0)
    both, jumps = together - 2 * price >= np.maximum(first, second) - price, first >= second
    single = np.maximum(first, second)
    return _Two(
        np.where(both, together, single),
        np.where(both, 2 * price, price),
        np.where(both, x, np.where(jumps, one, 0.0)),
        np.where(both, y, np.where(jumps, 0.0, two)),
    )
