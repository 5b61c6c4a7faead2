"""Ways to forecast a score from a ladder: two stages (size and data -> gauge -> score) and one (size and data -> score).

Every method sees a `Ladder` and nothing else; whoever holds a model out gives it a ladder without that model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from losslens.analysis.correlations import spearman
from losslens.analysis.curves import Floats
from losslens.analysis.ladder import LOSS, OWN, Ladder
from losslens.analysis.laws import Fit, Law
from losslens.analysis.links import ANCHORED, LINKS, SIGMOID
from losslens.analysis.scaling_laws import LOSS_LAWS, ONE_STAGE, ONE_STAGES, TOKENS_AND_SIZE


@dataclass(frozen=True, slots=True)
class Method:
    """`law` alone goes from size and data to the gain; with `gauge` and `link` it goes to the gauge, and the link on."""

    law: Law
    gauge: str | None = None
    link: Law | None = None

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.law.name if self.link is None else f"{self.gauge}: {self.law.name} -> {self.link.name}"


def methods(gauges: Iterable[str]) -> tuple[Method, ...]:
    """All that can be tried where these gauges were measured."""
    two = [Method(law, gauge, link) for gauge in gauges for law in LOSS_LAWS for link in LINKS]
    return (*two, *(Method(law) for law in ONE_STAGES))


def published(gauges: Iterable[str]) -> Method:
    """Two stages as in Bhagia et al. 2024: through the task's own bits per byte where there are some, else the loss."""
    return Method(TOKENS_AND_SIZE, OWN if OWN in gauges else LOSS, SIGMOID)


ONE_STAGE_RIVAL = Method(ONE_STAGE)


class Fitter:
    """Fits the parts of methods to one ladder, each part once. T targets: [2, T], parameters and tokens.

    `weights` [R] counts runs, for resamples; `begin` is a fitter of the same ladder from whose parameters the search starts.
    """

    def __init__(self, ladder: Ladder, weights: Floats | None = None, begin: Fitter | None = None, *, every: bool = False) -> None:
        self.ladder = ladder
        self._weights = np.ones(len(ladder.runs)) if weights is None else weights
        self._begin = begin
        self._every = every  # checkpoints on the way, even those that share others in their means
        sizes = np.log(np.stack([ladder.params, ladder.tokens]))
        self._centre = sizes.mean(axis=1, keepdims=True)
        self._x = sizes - self._centre
        self._parts: dict[tuple[str, ...], Fit | None] = {}

    def gains(self, method: Method, targets: Floats) -> Floats:
        """The gains that a method foretells for targets [2, T], at most the best possible; NaN where it cannot be fitted."""
        x = np.log(targets) - self._centre
        first = self._fit(method.law, method.gauge)
        if first is None or not np.isfinite(first.parameters).all():
            return np.full(targets.shape[1], np.nan)
        if method.link is None or method.gauge is None:
            return np.minimum(first.at(x), 1.0)
        second = self._linked(method.link, method.gauge)
        return np.full(targets.shape[1], np.nan) if second is None else np.minimum(second.at(first.at(x)[None, :]), 1.0)

    def _fit(self, law: Law, gauge: str | None) -> Fit | None:
        part = (law.name, gauge or "")
        if part not in self._parts:
            y = self.ladder.gain if gauge is None else self.ladder.gauges[gauge]
            self._parts[part] = law.fit(self._x, y, self._weights, self._start(part))
        return self._parts[part]

    def _linked(self, link: Law, gauge: str) -> Fit | None:
        part = (link.name, gauge, "link")
        if part not in self._parts:
            chosen = np.ones_like(self.ladder.apart) if self._every else self.ladder.apart
            x, y = self.ladder.on_gauges[gauge][chosen], self.ladder.on_gain[chosen]
            weights = self._weights[self.ladder.on_run[chosen]]
            if link.name in ANCHORED:
                x, y, weights = np.append(x, 0.0), np.append(y, 1.0), np.append(weights, 1.0)
            self._parts[part] = link.fit(x[None, :], y, weights, self._start(part))
        return self._parts[part]

    def _start(self, part: tuple[str, ...]) -> Floats | None:
        begun = self._begin._parts.get(part) if self._begin else None
        return None if begun is None else begun.parameters


def constant(ladder: Ladder, targets: Floats) -> Floats:
    """The gain of the run of most compute, whatever the target."""
    return np.full(targets.shape[1], ladder.gain[int((ladder.params * ladder.tokens).argmax())])


def linear(ladder: Ladder, targets: Floats) -> Floats:
    """A straight line of the gain in the logarithm of compute, at most the best possible."""
    x = np.log(ladder.params * ladder.tokens)
    if len(x) < 2 or np.ptp(x) == 0:
        return np.full(targets.shape[1], np.nan)
    slope, level = np.polyfit(x - x.mean(), ladder.gain, 1)
    return np.asarray(np.minimum(level + slope * (np.log(targets[0] * targets[1]) - x.mean()), 1.0))


Trust = Literal["", "too few runs", "at chance", "noise", "no trend"]

_RUNS, _SIZES = 6, 3  # fewer have no law
_CLEAR = 3.0  # standard errors by which the ladder must leave chance, and times its noise that it must span
_TREND = 0.7  # rank correlation of score with compute below which size and data do not decide


def trust(ladder: Ladder) -> Trust:
    """Why a score cannot be forecast from this ladder, "" if it can: judged from the ladder's noise and shape alone."""
    if len(ladder.runs) < _RUNS or len(np.unique(ladder.params)) < _SIZES:
        return "too few runs"
    noise = float(ladder.noise(np.array([float(np.median(ladder.gain))]))[0])
    known = ladder.wobble[np.isfinite(ladder.wobble)]
    wobble = float(np.median(known)) if len(known) else 0.0
    noise = float(np.hypot(noise, wobble))
    if float(np.sort(ladder.gain)[-3:].mean()) < _CLEAR * noise:
        return "at chance"
    if float(np.ptp(np.sort(ladder.gain)[1:-1])) < _CLEAR * noise:
        return "noise"
    trend = spearman(ladder.params * ladder.tokens, ladder.gain)
    return "" if trend is not None and trend >= _TREND else "no trend"
