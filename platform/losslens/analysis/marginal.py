"""What doubling a model's size gains, and the size beyond which that is less than a margin.

    at fixed data       L(N, D) - L(2 N, D)     = A (1 - 2^-alpha) / N^alpha
    at fixed compute    L(N, D) - L(2 N, D / 2) = A (1 - 2^-alpha) / N^alpha - B (2^beta - 1) / D^beta,  D = C / (6 N)

Both fall with N, the second through 0 where the compute is spent best, so there is one size at which each passes the margin.
A law without B says nothing of fixed compute. 6 N D is Kaplan et al. 2020 (arXiv 2001.08361), as in every law of size and data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from losslens.analysis.curves import Floats
from losslens.analysis.resampling import ends_of

Constants = Mapping[str, float | None]  # a, alpha, b, beta, floor
_FAR = 700.0  # e^700 is no size anybody has
FLOPS = 6.0  # of training, per parameter and token


def beyond_at_data(law: Constants, margin: float) -> float:
    """The size from which on doubling it lowers the loss by less than `margin`, whatever the tokens."""
    a, alpha = law["a"] or 0.0, law["alpha"] or 1.0
    return math.exp(min((_log(a * (1 - 2**-alpha)) - math.log(margin)) / alpha, _FAR))


def beyond_at_compute(law: Constants, margin: float, compute: float) -> float | None:
    """The same where a model of twice the size reads half the tokens; None for a law of size alone, infinite for no size."""
    a, alpha, b, beta = (law[name] for name in ("a", "alpha", "b", "beta"))
    if not a or not alpha or not b or not beta:
        return None
    gained, lost = _log(a * (1 - 2**-alpha)), _log(b * (2**beta - 1)) - beta * math.log(compute / FLOPS)

    def ahead(n: float) -> float:
        return float(gained - alpha * n - np.logaddexp(math.log(margin), lost + beta * n))

    if ahead(-_FAR) <= 0 or ahead(_FAR) >= 0:
        return 0.0 if ahead(-_FAR) <= 0 else math.inf
    return math.exp(optimize.brentq(ahead, -_FAR, _FAR))


def marginal(
    law: Constants, resampled: Sequence[Constants], params: Floats, tokens: Floats, *, margin: float, compute: float | None
) -> dict[str, Any]:
    """Both sizes with 95 % intervals over refits of resampled runs, and whether they lie outside what the runs [R] measured.

    Measured is a doubling from N to 2 N where both lie within the runs' sizes and, at fixed compute, both token budgets
    within theirs. `compute` in FLOPs; by default the most that a run took.
    """
    spent = compute or FLOPS * float((params * tokens).max())
    row: dict[str, Any] = {"margin": margin, "compute": None, "margin_extrapolated": None, "margin_compute_extrapolated": None}
    at_data = beyond_at_data(law, margin)
    row |= ends_of(at_data, [beyond_at_data(one, margin) for one in resampled], "params_at_margin")
    row["margin_extrapolated"] = not _within(params, at_data, 2 * at_data)
    at_compute = beyond_at_compute(law, margin, spent)
    if at_compute is None:
        return row | dict.fromkeys(("params_at_margin_compute", "params_at_margin_compute_low", "params_at_margin_compute_high"))
    found = [beyond_at_compute(one, margin, spent) for one in resampled]
    row |= ends_of(at_compute, [one for one in found if one is not None], "params_at_margin_compute")
    read = spent / FLOPS / max(at_compute, 1e-300)
    within = _within(params, at_compute, 2 * at_compute) and _within(tokens, read / 2, read)
    return row | {"compute": spent, "margin_compute_extrapolated": not within}


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -_FAR


def _within(measured: Floats, low: float, high: float) -> bool:
    return bool(measured.min() <= low and high <= measured.max())
