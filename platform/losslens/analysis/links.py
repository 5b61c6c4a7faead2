"""From loss to score: the shapes that the literature fits, in performance normalised so that chance is 0 and the best is 1.

x is [1, N]: the loss, or another quantity that falls as a model improves, such as -log of the correct option's probability.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from losslens.analysis.curves import Floats
from losslens.analysis.laws import Law, column, grid


def _spread(x: Floats) -> tuple[Floats, float]:
    """Places within the range of x, and its width."""
    return np.quantile(x, [0.1, 0.3, 0.5, 0.7, 0.9]), max(float(np.ptp(x)), 1e-9)


def _falling(z: Any) -> Any:
    """1 / (1 + e^z), for complex z too."""
    return 1 / (1 + np.exp(np.where(np.real(z) > 500, 500, z)))


def _sigmoid(p: Floats, x: Floats) -> Floats:
    top = _falling(-column(p, 3))
    return np.asarray(top - np.exp(column(p, 0)) * _falling(-np.exp(column(p, 1)) * (x[0] - column(p, 2))))


def _sigmoid_starts(x: Floats, y: Floats) -> Floats:
    places, width = _spread(x[0])
    return grid(np.log([0.7, 1.0, 1.5]), np.log(np.array([1.0, 3.0, 6.0, 12.0]) / width), places, [2.0, 5.0])


def _floored(p: Floats, x: Floats) -> Floats:
    return np.asarray(_falling(np.exp(column(p, 0)) * (x[0] - column(p, 1))))


def _floored_starts(x: Floats, y: Floats) -> Floats:
    places, width = _spread(x[0])
    return grid(np.log(np.array([1.0, 3.0, 6.0, 12.0]) / width), np.concatenate([places, places - width]))


def _power(p: Floats, x: Floats) -> Floats:
    return np.asarray(np.exp(-np.exp(column(p, 0) + np.exp(column(p, 1)) * np.log(np.maximum(x[0], 1e-9)))))


def _power_starts(x: Floats, y: Floats) -> Floats:
    return grid(np.linspace(-6, 3, 19), np.log([0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0]))


def _exponential(p: Floats, x: Floats) -> Floats:
    return np.asarray(column(p, 0) + np.exp(column(p, 1) - np.exp(column(p, 2)) * x[0]))


def _exponential_starts(x: Floats, y: Floats) -> Floats:
    return grid([-0.5, -0.2, 0.0, 0.1], np.linspace(-3, 6, 10), np.log([0.2, 0.5, 1.0, 2.0, 4.0]))


def _ramp(p: Floats, x: Floats) -> Floats:
    raw = np.exp(column(p, 1)) * (column(p, 0) - x[0])
    return np.asarray(np.where(np.real(raw) < 0, 0 * raw, np.where(np.real(raw) > 1, 1 + 0 * raw, raw)))


def _ramp_starts(x: Floats, y: Floats) -> Floats:
    places, width = _spread(x[0])
    return grid(places, np.log(np.array([0.1, 0.3, 1.0, 3.0]) / width))


SIGMOID = Law("sigmoid", "top - height / (1 + exp(-steepness (x - middle))), 1 at x = 0", 4, _sigmoid, _sigmoid_starts)
"""Bhagia et al. 2024 (arXiv 2412.04403): fitted with a made-up observation, a perfect score at loss 0 (see `ANCHORED`)."""

FLOORED = Law("floored sigmoid", "1 / (1 + exp(steepness (x - middle)))", 2, _floored, _floored_starts)
"""From chance to perfect: both ends fixed."""

POWER = Law("power", "exp(-a x^k)", 2, _power, _power_starts)
"""-log(normalised score) is a power of the loss."""

EXPONENTIAL = Law("exponential", "c + k exp(-gamma x)", 3, _exponential, _exponential_starts)
"""Gadre et al. 2024 (arXiv 2403.08540): error = epsilon - k exp(-gamma loss)."""

RAMP = Law("ramp", "min(1, slope max(0, eta - x))", 2, _ramp, _ramp_starts)
"""At chance until the loss falls below eta, then straight up: the paper's perf(L) with linear f."""

LINKS = (SIGMOID, FLOORED, POWER, EXPONENTIAL, RAMP)
ANCHORED = frozenset({SIGMOID.name})
"""Links that are told that a loss of 0 means a perfect score."""
