"""A smooth monotone curve through the points of many runs, and how well it foretells a run it has not seen.

    f(x) = b + sum_j c_j I_j(x),  c_j >= 0

with quadratic I-splines (Ramsay 1988). A third of the knots lie at quantiles of x, a third evenly in x, a third evenly in y: a curve
that is too stiff where points are few or where it jumps shows as a difference between runs that are there more or less often. The
bound smooths: most c_j of a fit are 0. Only cross-products enter a fit, so that the fit without a run is a subtraction.

N points, M splines, R runs.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import BSpline
from scipy.optimize import nnls

from losslens.analysis.curves import Bools, Floats, Ints

_KNOTS = 15  # of each kind, between the ends, at most
_POINTS_PER_KNOT = 6
_RIDGE = 1e-9  # of each spline's squares: splines that the points cannot tell apart stay solvable
_UNSEEN_RIDGE = 1e-3  # the same without a run: a spline that only that run informs stays at 0


def splines(x: Floats, value: Floats, weight: Floats) -> Floats:
    """I_j(x), each rising from 0 to 1; shape [N, M]. Two different x are needed."""
    low, high = float(x.min()), float(x.max())
    count = int(np.clip(len(np.unique(x)) // _POINTS_PER_KNOT, 1, _KNOTS))
    share = np.linspace(0, 1, count + 2)[1:-1]
    inner = np.union1d(np.quantile(x, share), low + share * (high - low))
    first = _splines(x, inner)
    columns = np.column_stack([np.ones(len(x)), first, value])
    gram = _centred(columns.T @ (columns * weight[:, None]))
    order = np.argsort(x)
    height = first[order] @ min((_bounded(one) for one in (gram, _turned(gram))), key=lambda found: found[1])[0]
    if height[-1] > height[0]:
        inner = np.union1d(inner, np.interp(height[0] + share * (height[-1] - height[0]), height, x[order]))
    return _splines(x, inner)


def unseen_errors(x: Floats, value: Floats, weight: Floats, run: Ints) -> Floats:
    """Each run's weighted mean squared distance from the curve through all other runs; shape [R]. `run` is sorted."""
    columns = np.column_stack([np.ones(len(value)), splines(x, value, weight), value])
    upward = cross(columns, columns, weight, run)
    by_run = min(upward, _turned(upward), key=lambda sums: _bounded(_centred(sums.sum(axis=0)))[1])
    total = by_run.sum(axis=0)
    ridge = _UNSEEN_RIDGE * _centred(total).diagonal()[:-1]
    return np.asarray([_distance(own, _fitted(total - own, ridge)) for own in by_run])


def _splines(x: Floats, inner: Floats) -> Floats:
    low, high = float(x.min()), float(x.max())
    apart = inner[(inner > low) & (inner < high)]
    knots = np.concatenate([[low] * 3, apart, [high] * 3])
    pieces = BSpline.design_matrix(x, knots, 2).toarray()
    rising: Floats = np.cumsum(pieces[:, ::-1], axis=1)[:, -2::-1]
    return rising


def _turned(gram: Floats) -> Floats:
    """The cross-products with -y in the place of y, the last."""
    turn = np.ones(gram.shape[-1])
    turn[-1] = -1.0
    return np.asarray(gram * turn * turn[:, None])


def cross(left: Floats, right: Floats, weight: Floats, run: Ints) -> Floats:
    """left' W right of each run; shape [R, columns of left, columns of right]. `run` is sorted."""
    starts = np.unique(run, return_index=True)[1][1:]
    pairs = zip(np.split(left * weight[:, None], starts), np.split(right, starts), strict=True)
    return np.stack([weighted.T @ plain for weighted, plain in pairs])


def used(rising: Floats, free: Floats, value: Floats, weight: Floats) -> Bools:
    """Which splines the best monotone curve uses that has columns of any sign, `free` [N, F], beside it; shape [M]."""
    root = np.sqrt(weight)[:, None]
    basis, _ = np.linalg.qr(np.column_stack([np.ones(len(value)), free]) * root)
    columns = np.column_stack([rising, value]) * root
    columns -= basis @ (basis.T @ columns)
    gram = columns.T @ columns
    rise = min((_bounded(one) for one in (gram, _turned(gram))), key=lambda found: found[1])[0]
    return np.asarray(rise > 0)


def _bounded(gram: Floats, ridge: Floats | None = None) -> tuple[Floats, float]:
    """(c, squares left) of the least squares with c >= 0, from the cross-products of splines and y."""
    added = _RIDGE * gram.diagonal()[:-1] if ridge is None else ridge
    squares = gram.diagonal()[:-1] + added
    scale = np.sqrt(np.where(squares > 0, squares, 1.0))
    scaled = (gram[:-1, :-1] + np.diag(added)) / scale / scale[:, None]
    factor = np.linalg.cholesky(scaled + np.diag(np.where(squares > 0, _RIDGE, 1.0)))
    found, _ = nnls(factor.T, np.linalg.solve(factor, gram[:-1, -1] / scale), maxiter=20 * len(scale))
    rise: Floats = found / scale
    return rise, float(gram[-1, -1] - 2 * rise @ gram[:-1, -1] + rise @ gram[:-1, :-1] @ rise)


def _centred(total: Floats) -> Floats:
    """Cross-products about the weighted means, without the constant."""
    return np.asarray(total[1:, 1:] - np.outer(total[1:, 0], total[0, 1:]) / total[0, 0])


def _fitted(total: Floats, ridge: Floats) -> Floats:
    """(-b, -c, 1): times the columns, what is left of y."""
    rise = _bounded(_centred(total), ridge)[0]
    base = (total[0, -1] - total[0, 1:-1] @ rise) / total[0, 0]
    return np.concatenate([[-base], -rise, [1.0]])


def _distance(own: Floats, left: Floats) -> float:
    return max(float(left @ own @ left / own[0, 0]), 0.0)
