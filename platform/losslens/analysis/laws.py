"""Laws: functions with free parameters, and one way to fit all of them.

A law is a value: a name, a formula, and from where to search. Fitting evaluates a whole grid of starts at once and follows
the best few downhill: by L-BFGS-B under Huber's loss, by Levenberg-Marquardt under squares. Slopes come from complex steps,
exact to the last digit, so a law is written once and never differentiated by hand; parameters that must be positive are
exponents or squares of free ones, so no fit has bounds.

K covariates, N observations, P parameters, S starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import optimize

from losslens.analysis.curves import Floats

_STEP = 1e-30  # of the complex step: too small to change any value, large enough to divide by
_FOLLOWED, _FOLLOWED_BY_SQUARES = 2, 6  # starts of the grid that are followed downhill: steps by squares are cheap
_STEPS, _STEPS_AGAIN = 300, 60  # downhill, and for a resample, which begins near its end
_FAR = 60.0  # no exponent of a start or a step may leave +-60: e^60 is no quantity anybody measures


@dataclass(frozen=True, slots=True)
class Law:
    """`value(parameters, x)` maps [..., P] and covariates [K, N] to [..., N]; `starts(x, y)` is [S, P].

    `logs` compares logarithms, so that errors are relative; `huber` is where Huber's loss turns from squares to absolute
    values, in the units compared, None for squares throughout.
    """

    name: str
    formula: str
    parameters: int
    value: Callable[[Floats, Floats], Floats]
    starts: Callable[[Floats, Floats], Floats]
    logs: bool = False
    huber: float | None = None

    def fit(self, x: Floats, y: Floats, weights: Floats | None = None, start: Floats | None = None) -> Fit | None:
        """The best parameters for observations `y` [N] at `x` [K, N], each counted `weights` [N] times.

        `start` [P] replaces the grid: the way to refit a resample. None when there are not more observations than
        parameters, or none that can be compared.
        """
        usable = np.isfinite(y) & np.isfinite(x).all(axis=0) & ((y > 0) if self.logs else True)
        x, y = x[:, usable], y[usable]
        counts = np.ones(len(y)) if weights is None else weights[usable]
        if int((counts > 0).sum()) <= self.parameters:
            return None
        problem = _Problem(self, x, np.log(y) if self.logs else y, counts)
        candidates = self.starts(x, y) if start is None else start[None, :]
        cost = problem.cost(candidates)
        steps = _STEPS if start is None else _STEPS_AGAIN
        count = _FOLLOWED if self.huber is not None else _FOLLOWED_BY_SQUARES
        followed = [problem.follow(candidates[place], steps) for place in np.argsort(cost)[:count]]
        best = min(followed, key=lambda found: float(problem.cost(found[None, :])[0]))
        return Fit(self, best)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A law with its parameters [P]."""

    law: Law
    parameters: Floats

    def at(self, x: Floats) -> Floats:
        """The law's value at covariates [K, N]; shape [N]."""
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(self.law.value(self.parameters, x), dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    law: Law
    x: Floats
    y: Floats  # logarithms where the law compares them
    counts: Floats

    def residuals(self, parameters: Floats) -> Floats:
        """What [..., P] miss, in the units compared; complex where the parameters are."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            value = self.law.value(parameters, self.x)
            return np.asarray(np.log(value) if self.law.logs else value) - self.y

    def cost(self, parameters: Floats) -> Floats:
        """Summed loss of [S, P]; infinite where the law has no value. In units of the bend of Huber's loss."""
        missed = np.abs(self.residuals(parameters)) / (self.law.huber or 1.0)
        with np.errstate(over="ignore", invalid="ignore"):
            loss = missed**2 / 2 if self.law.huber is None else np.where(missed <= 1, missed**2 / 2, missed - 0.5)
        total: Floats = (loss * self.counts).sum(axis=-1)
        return np.where(np.isfinite(total), total, np.inf)

    def sloped(self, parameters: Floats) -> tuple[Floats, Floats]:
        """Residuals [N] of one [P] and their derivatives [N, P]."""
        moved = self.residuals(parameters + 1j * _STEP * np.eye(len(parameters)))
        slopes = moved.imag / _STEP
        return moved[0].real, np.where(np.isfinite(slopes), slopes, 0.0).T

    def follow(self, start: Floats, steps: int) -> Floats:
        """Downhill from one [P], at most so many steps."""
        if self.law.huber is not None:
            options = {"maxiter": steps, "maxfun": 3 * steps, "ftol": 1e-10, "gtol": 1e-6}
            found = optimize.minimize(self._cost_and_slope, start, jac=True, method="L-BFGS-B", options=options)
            return np.asarray(found.x, dtype=np.float64)
        root = np.sqrt(self.counts)
        solved = optimize.least_squares(
            lambda p: np.nan_to_num(root * self.residuals(np.clip(p, -_FAR, _FAR)), nan=1e6, posinf=1e6, neginf=-1e6),
            np.clip(start, -_FAR, _FAR),
            jac=lambda p: root[:, None] * self.sloped(np.clip(p, -_FAR, _FAR))[1],
            method="lm",
            max_nfev=steps,
        )
        return np.asarray(np.clip(solved.x, -_FAR, _FAR), dtype=np.float64)

    def _cost_and_slope(self, parameters: Floats) -> tuple[float, Floats]:
        bend = self.law.huber or 1.0
        missed, slopes = self.sloped(parameters)
        if not np.isfinite(missed).all():
            return 1e12, np.zeros_like(parameters)
        far = np.abs(missed) / bend
        cost = np.where(far <= 1, far**2 / 2, far - 0.5) @ self.counts
        return float(cost), (np.clip(missed / bend, -1, 1) * self.counts / bend) @ slopes


def grid(*choices: Floats | list[float] | tuple[float, ...]) -> Floats:
    """Every combination of the choices for each parameter; shape [S, P]."""
    return np.array(list(product(*choices)), dtype=np.float64)


def column(parameters: Floats, number: int) -> Floats:
    """One parameter of [..., P], to be spread over observations; shape [..., 1]."""
    return parameters[..., number, None]
