"""Which methods to trust: the ladder forecasts itself, and those whose mean did best are kept.

Prefixes of a ladder's sizes forecast its larger sizes with every method. The mean of the kept ones is the forecast, and how
far they lie apart is most of its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from losslens.analysis.curves import Floats
from losslens.analysis.ladder import Ladder
from losslens.analysis.methods import Fitter, Method, methods

COVERED = 0.8  # of the truth, that intervals are made to hold
_FEWEST_KEPT, _MOST_KEPT = 2, 20
_WORTH = 1e-5  # of a score, by which one more method must lower the mean error


@dataclass(frozen=True, slots=True)
class Choice:
    """What the ladder's own hold-outs say about methods tried on the curves of one pool.

    `errors`: mean absolute error in score by method name, best first; `kept` the methods whose mean is the forecast,
    one of them perhaps twice.
    `coverage`: the part of the `held_out` scores within the kept methods' intervals. No hold-out was possible where `errors` is
    empty.
    """

    kept: tuple[Method, ...]
    errors: dict[str, float]
    error: float | None = None
    coverage: float | None = None
    held_out: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Sizes up to one forecast all larger runs [T]: gains by method, what they were, and the part of the ladder used."""

    known: Ladder
    gains: dict[str, Floats]
    actual: Floats


def trials(ladder: Ladder) -> list[Trial]:
    """Every prefix of at least three sizes, or of two where there are no more, forecasts all larger runs.

    Three, because A / N^alpha + E has three constants: from two sizes any forecast follows.
    """
    made, sizes = [], np.unique(ladder.params)
    for size in sizes[2:-1] if len(sizes) > 3 else sizes[1:-1]:
        known, ahead = ladder.only(ladder.params <= size), ladder.only(ladder.params > size)
        fitter, targets = Fitter(known), np.stack([ahead.params, ahead.tokens])
        made.append(Trial(known, {method.name: fitter.gains(method, targets) for method in methods(ladder.gauges)}, ahead.gain))
    return made


def choose(pool: Sequence[Ladder], tried: Sequence[Sequence[Trial]]) -> Choice:
    """The methods whose mean misses the held-out scores least, gathered one by one: ensemble selection (Caruana et al. 2004).

    It begins with the best method and adds, again and again, the one that helps most, until none does; one may come twice.
    At least two are kept, because what is known about the error is how far methods lie apart.
    """
    every = {method.name: method for method in methods(pool[0].gauges)}
    cells = [(trial, abs(ladder.room)) for ladder, mine in zip(pool, tried, strict=True) for trial in mine]
    missed = {name: np.concatenate([room * (t.gains[name] - t.actual) for t, room in cells]) for name in every} if cells else {}
    missed = {name: values for name, values in missed.items() if np.isfinite(values).all()}
    if not missed:
        return Choice(tuple(every.values()), {})
    errors = {name: float(np.abs(values).mean()) for name, values in missed.items()}
    order = sorted(errors, key=lambda name: errors[name])
    kept = _gathered(missed)
    kept += [name for name in order if name not in kept][: max(_FEWEST_KEPT - len(set(kept)), 0)]
    chosen = tuple(every[name] for name in kept)
    held = [np.abs(mean(chosen, t.gains) - t.actual) <= half_width(t.known, chosen, t.gains, np.zeros(1)) for t, _ in cells]
    within = np.concatenate(held)
    error = np.abs(np.mean([missed[name] for name in kept], axis=0)).mean()
    return Choice(chosen, {name: errors[name] for name in order}, float(error), float(within.mean()), len(within))


def _gathered(missed: dict[str, Floats]) -> list[str]:
    kept: list[str] = []
    total, best = np.zeros(len(next(iter(missed.values())))), np.inf
    while len(kept) < _MOST_KEPT:
        error = {name: float(np.abs((total + values) / (len(kept) + 1)).mean()) for name, values in missed.items()}
        name = min(error, key=lambda name: error[name])
        if error[name] >= best - _WORTH:
            break
        best, total = error[name], total + missed[name]
        kept.append(name)
    return kept


def mean(kept: Sequence[Method], gains: dict[str, Floats]) -> Floats:
    """The mean gain [T] of the kept methods that could be fitted, NaN where none could."""
    known = np.stack([gains[method.name] for method in kept])
    return np.asarray(np.nanmean(known, axis=0)) if np.isfinite(known).any() else np.full(known.shape[1], np.nan)


def half_width(ladder: Ladder, kept: Sequence[Method], gains: dict[str, Floats], resampled: Floats) -> Floats:
    """Half of the interval [T]: Student's t for the spread between methods, the resamples' and the noise of one evaluation.

    The degrees of freedom are Welch's and Satterthwaite's: few methods say little about how far the truth may lie.
    """
    told = np.stack([gains[method.name] for method in kept])
    count = len({method.name for method in kept})
    with np.errstate(invalid="ignore", divide="ignore"):
        between = np.nanvar(told, axis=0) * count / (count - 1) if count > 1 else np.zeros(told.shape[1])
        variance = between + resampled**2 + ladder.noise(mean(kept, gains)) ** 2
        freedom = np.where(between > 0, (count - 1) * (variance / between) ** 2, 1e6)
    return np.asarray(stats.t.ppf((1 + COVERED) / 2, np.clip(freedom, 1.0, 1e6)) * np.sqrt(variance))
