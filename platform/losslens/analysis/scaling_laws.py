"""How a loss, or any falling quantity, follows size and data. x is [2, N]: log of parameters and log of tokens, centred.

`TOKENS_AND_SIZE` is what `losslens scaling` prints; the others are its rivals.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from losslens.analysis.curves import Floats
from losslens.analysis.laws import Law, column, grid

_SLOPES = np.array([-2.4, -1.7, -1.1, -0.4, 0.8])  # exponents of .08, .15, .25, .4 and .7, from which a search starts
_FLOORS = (1e-4, 0.3, 0.6, 0.85)  # of the lowest value: the part that no size and no data take away


def exponent(free: Floats) -> Floats:
    """An exponent between 0 and 1, as every published law has, from a free parameter."""
    return np.asarray(1 / (1 + np.exp(-free)))


def _both(p: Floats, x: Floats) -> Floats:
    size = np.exp(column(p, 0) - exponent(column(p, 2)) * x[0])
    return np.asarray(size + np.exp(column(p, 1) - exponent(column(p, 3)) * x[1]) + column(p, 4) ** 2)


def _both_starts(x: Floats, y: Floats) -> Floats:
    low, middle = float(y.min()), float(np.median(y))
    split = [(floor, share) for floor in _FLOORS for share in (0.15, 0.3, 0.5, 0.7, 0.85)]
    made = [_both_from(max(middle - floor * low, 1e-9), share, np.sqrt(floor * low)) for floor, share in split]
    return np.concatenate(made)


def _both_from(rest: float, share: float, floor: float) -> Floats:
    return grid([np.log(rest * share)], [np.log(rest * (1 - share))], _SLOPES, _SLOPES, [floor])


def _one(p: Floats, x: Floats, covariate: Floats) -> Floats:
    return np.asarray(np.exp(column(p, 0) - exponent(column(p, 1)) * covariate) + column(p, 2) ** 2)


def _one_starts(x: Floats, y: Floats) -> Floats:
    low, middle = float(y.min()), float(np.median(y))
    return np.concatenate([grid([np.log(max(middle - floor * low, 1e-9))], _SLOPES, [np.sqrt(floor * low)]) for floor in _FLOORS])


def _gain_of_both(p: Floats, x: Floats) -> Floats:
    size = np.exp(column(p, 0) - exponent(column(p, 2)) * x[0])
    return np.asarray(np.exp(-size - np.exp(column(p, 1) - exponent(column(p, 3)) * x[1])))


def _gain_of_compute(p: Floats, x: Floats) -> Floats:
    return np.asarray(np.exp(-np.exp(column(p, 0) - exponent(column(p, 1)) * (x[0] + x[1]))))


TOKENS_AND_SIZE = Law("A/N^a + B/D^b + E", "A / N^alpha + B / D^beta + E", 5, _both, _both_starts, logs=True, huber=1e-3)
"""Hoffmann et al. 2022, as Bhagia et al. 2024 (arXiv 2412.04403) fit it: Huber's loss of 1e-3 on logarithms."""

BY_SQUARES = replace(TOKENS_AND_SIZE, name="A/N^a + B/D^b + E, squares", huber=None)
"""The same law by least squares on logarithms: every run counts, an outlier too."""

COMPUTE = Law("A/C^a + E", "A / C^alpha + E", 3, lambda p, x: _one(p, x, x[0] + x[1]), _one_starts, logs=True, huber=1e-3)
"""FLP (Chen et al. 2024, arXiv 2410.08527): compute alone, C = 6 N D up to a factor that A takes up."""

SIZE = Law("A/N^a + E", "A / N^alpha + E", 3, lambda p, x: _one(p, x, x[0]), _one_starts, logs=True, huber=1e-3)
"""The paper's L(N) = L_inf + (N_0 / N)^alpha, where all runs read equally much."""

ONE_STAGE = Law("one stage in C", "exp(-A / C^alpha)", 2, _gain_of_compute, lambda x, y: grid(np.linspace(-4, 2, 13), _SLOPES))
"""Krajewski et al. 2025 (arXiv 2512.08894): -log(normalised score) = A / C^alpha, without a loss in between."""

ONE_STAGE_BOTH = Law(
    "one stage in N, D",
    "exp(-A / N^alpha - B / D^beta)",
    4,
    _gain_of_both,
    lambda x, y: grid(np.linspace(-4, 2, 7), np.linspace(-4, 2, 7), _SLOPES, _SLOPES),
)
"""The same with size and tokens apart."""

LOSS_LAWS = (TOKENS_AND_SIZE, BY_SQUARES, COMPUTE)
ONE_STAGES = (ONE_STAGE, ONE_STAGE_BOTH)
