"""Linear models whose runs differ: y = X b + Z u_r + e, with what is drawn anew for each run in u_r.

    u_r ~ N(0, s0 1 1' + s1 I),    e_i ~ N(0, s2 / w_i)

Z spreads a run's own deviation over places of the axis: s0 is the variance of one that is the same at all of them, s1 of one that is not.
So checkpoints of a run never count as independent. b is plain weighted least squares, and (s0, s1, s2) are those at which three sums of
squared residuals are what they are expected to be (Henderson's third method; Searle et al., Variance Components, 1992, 5.5): under
generalised least squares a curve that is a little too stiff moved the effects by ten of their standard errors (docs/SAME_CURVE.md).

N points, R runs, Q columns of Z, P columns of X.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from losslens.analysis.curves import Floats, Ints
from losslens.analysis.monotone import cross


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """`estimate` of b, shape [P], its covariance, and the standard deviation of a run where one row of Z sums to one."""

    estimate: Floats
    covariance: Floats
    run_spread: float


def fit(design: Floats, spread: Floats, value: Floats, weight: Floats, run: Ints) -> Fit:
    """`design` is X [N, P], `spread` Z [N, Q]; `run` is sorted. N must exceed P."""
    weighted = design * weight[:, None]
    inverse = np.linalg.pinv(weighted.T @ design, hermitian=True)
    estimate = inverse @ (weighted.T @ value)
    left = value - design @ estimate
    own, shared = cross(spread, spread, weight, run), cross(spread, design, weight, run)  # [R, Q, Q], [R, Q, P]
    variances = _variances(left, weight, len(estimate), cross(spread, left[:, None], weight, run)[..., 0], own, shared @ inverse, shared)
    same, apart, single = variances
    drawn = same + apart * np.eye(spread.shape[1])
    pulled = inverse @ shared.transpose(0, 2, 1)  # [R, P, Q]: how a run's deviation moves the estimate
    covariance = single * inverse + (pulled @ drawn @ pulled.transpose(0, 2, 1)).sum(axis=0)
    return Fit(estimate, covariance, float(np.sqrt(same + apart / spread.shape[1])))


def _variances(left: Floats, weight: Floats, parameters: int, scores: Floats, own: Floats, pulls: Floats, shared: Floats) -> Floats:
    """(s0, s1, s2), none below 0, from residuals and their `scores` Z_r' W e_r, shape [R, Q].

    Of run h's deviation, scores of run r keep kept[r, h] = (r == h) own_r - shared_r (X'WX)^-1 shared_h'.
    """
    runs, places = scores.shape
    kept = -np.einsum("rqp,hsp->rhqs", pulls, shared)
    kept[np.arange(runs), np.arange(runs)] += own
    noise = own - np.einsum("rqp,rsp->rqs", pulls, shared)  # covariance of a run's scores for s2 = 1
    per_mean = 1.0 / own.sum(axis=(1, 2))
    per_place = np.linalg.pinv(own, hermitian=True)
    one = np.ones(places)
    common = kept.sum(axis=3)  # [R, R, Q]: what is left of a deviation that is the same everywhere
    measured = np.asarray(
        [(per_mean * scores.sum(axis=1) ** 2).sum(), np.einsum("rq,rqs,rs->", scores, per_place, scores), (weight * left**2).sum()]
    )
    expected = np.asarray(
        [
            [
                (per_mean[:, None] * common.sum(axis=2) ** 2).sum(),
                (per_mean[:, None, None] * kept.sum(axis=2) ** 2).sum(),
                (per_mean * noise.sum(axis=(1, 2))).sum(),
            ],
            [
                np.einsum("rhq,rqs,rhs->", common, per_place, common, optimize=True),
                np.einsum("rhqk,rqs,rhsk->", kept, per_place, kept, optimize=True),
                np.einsum("rqs,rsq->", per_place, noise),
            ],
            [one @ noise.sum(axis=0) @ one, np.trace(noise.sum(axis=0)), len(left) - parameters],
        ]
    )
    scale = np.maximum(measured, 1e-300)
    size = np.abs(expected / scale[:, None]).max(axis=0)
    found, _ = nnls(expected / scale[:, None] / size, measured / scale)
    variances: Floats = found / size
    return variances
