"""At which loss does each ability appear: a verdict and, where it is `emergent`, a threshold with its interval.

The method, its assumptions and the exact meaning of every verdict are in docs/THRESHOLDS.md.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from losslens.analysis import onset
from losslens.analysis.correlations import pearson, spearman
from losslens.analysis.curves import Curve, Key, describe, running_mean, smoothed_noise, split, thinned
from losslens.analysis.interval import interval
from losslens.results.tables import THRESHOLDS

Verdict = Literal["emergent", "gradual", "inverse", "no_trend", "not_reached", "too_few"]

MIN_CHECKPOINTS = 8  # trained checkpoints of different loss, below which nothing is said
MIN_ABSENT = 2  # trained checkpoints above eta that `emergent` asks for
MIN_ABSENT_RANGE = 0.2  # of the range of trained losses, that must lie above eta
MIN_ABSENT_LIKELY = 0.8  # of the likelihood of eta, on values above which so much was measured
ABSENT = 0.1  # of the final gain: less than that counts as absent
EARLY = 0.6  # of the final gain: the fit of eta looks no further down
EVIDENCE = 10.0  # by how much BIC must prefer a model (very strong, in Kass and Raftery's words)
CLEAR = 3.0  # standard errors by which a single checkpoint is clearly above chance
_LEVEL = 1.645  # standard errors by which a flat curve's level differs from chance (5 % on either side)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is said about one curve; losses in its own unit, NULL columns as None."""

    verdict: Verdict
    eta: float | None = None
    eta_low: float | None = None
    eta_high: float | None = None
    last_at_chance: float | None = None
    first_above: float | None = None
    dispersion: float | None = None
    spread: float | None = None


def thresholds(curve: pa.Table, *, bootstrap: int = 200, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> pa.Table:
    """One row for each (study, task, format, shots, metric, loss_dataset, loss_unit) in rows of view `curve`.

    `bootstrap` resamples of runs and blocks of checkpoints enter the interval; the same rows and seed give the same
    numbers. `progress` hears how many curves of how many are done. Columns: `losslens.results.tables.THRESHOLDS`; `eta`
    and its neighbours are NULL unless the verdict is `emergent`.
    """
    now = datetime.now(UTC)
    curves = list(split(curve))
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:  # most of the work is numpy's, which lets go of the interpreter
        for row in threads.map(lambda one: _row(*one, bootstrap=bootstrap, seed=seed), curves):
            rows.append(row | {"computed_at": now})
            if progress:
                progress(len(rows), len(curves))
    return pa.Table.from_pylist(rows, schema=THRESHOLDS)


def _row(key: Key, points: Curve, *, bootstrap: int, seed: int) -> dict[str, Any]:
    found = judge(points, bootstrap=bootstrap, seed=seed)
    notes = [f"{name} {value:.3g}" for name, value in (("dispersion", found.dispersion), ("spread", found.spread)) if value is not None]
    return (
        key._asdict()
        | describe(points)
        | {name: getattr(found, name) for name in ("verdict", "eta", "eta_low", "eta_high", "last_at_chance", "first_above")}
        | {"spearman": spearman(points.loss, points.value), "pearson": pearson(points.loss, points.value)}
        | {"method": ", ".join([f"onset/2, {bootstrap} resamples, seed {seed}", *notes])}
    )


def judge(points: Curve, *, bootstrap: int = 200, seed: int = 0) -> Finding:
    """The verdict on one curve, and its threshold when it is emergent."""
    curve = points.only(points.trained)
    if len(np.unique(curve.loss)) < MIN_CHECKPOINTS:
        return Finding("too_few")
    if not curve.has_chance:
        return Finding(_trend_of(replace(curve, noise=curve.noise * _own_share(curve))))
    curve = replace(curve, noise=smoothed_noise(curve))
    reached = _final_gain(curve)
    bound = _bound(reached)
    whole = onset.rough(thinned(curve), bound)
    if reached <= curve.guess or not _convincing(whole, curve):
        return Finding(_without_rise(curve), dispersion=whole.dispersion)
    early = thinned(_early(curve, reached))
    best = onset.fit(early, bound)
    if not _absent_before(curve, best) or _level_above(curve, float(best.quantile(0.5))) < -max(bound, curve.guess):
        return Finding("gradual", dispersion=best.dispersion)
    found = interval(early, best, bound, bootstrap=bootstrap, seed=seed)
    clear = curve.gain > max(bound, curve.guess) + CLEAR * curve.noise * np.sqrt(found.dispersion)
    return Finding(
        "emergent",
        eta=found.eta,
        eta_low=found.low,
        eta_high=found.high,
        last_at_chance=float(curve.loss[~clear].min()) if (~clear).any() else None,
        first_above=float(curve.loss[clear].max()) if clear.any() else None,
        dispersion=found.dispersion,
        spread=found.spread,
    )


def absent_up_to(curve: Curve) -> float:
    """The gain up to which trained checkpoints are not called above chance: a tenth of the final one, .02, or what guessing may reach."""
    return max(_bound(_final_gain(curve)), curve.guess)


def _bound(reached: float) -> float:
    return max(ABSENT * reached, 0.02)


def beginning(points: Curve) -> tuple[Curve, float]:
    """The part of an emergent curve to which its eta is fitted, and the largest base of that fit."""
    curve = points.only(points.trained)
    curve = replace(curve, noise=smoothed_noise(curve))
    reached = _final_gain(curve)
    return thinned(_early(curve, reached)), _bound(reached)


def _final_gain(curve: Curve) -> float:
    """Mean gain of the tenth of the checkpoints with the lowest loss, at least three."""
    last = np.argsort(curve.loss)[: max(3, len(curve.loss) // 10)]
    return float(curve.gain[last].mean())


def _early(curve: Curve, reached: float) -> Curve:
    """The checkpoints down to the loss at which the running mean of the gain first passes `EARLY` of the final gain: how the
    curve goes on says nothing about where it began, and a model that fails there would err here."""
    half = max(2, len(curve.loss) // 30)
    order = np.argsort(-curve.loss)
    passed = np.flatnonzero(running_mean(curve.gain[order], half) >= EARLY * reached)
    last = min(max(int(passed[0]) + half, MIN_CHECKPOINTS - 1), len(order) - 1) if len(passed) else len(order) - 1
    early = curve.only(curve.loss >= curve.loss[order[last]])
    return early if len(np.unique(early.loss)) >= MIN_CHECKPOINTS else curve


def _convincing(best: onset.Fit, curve: Curve) -> bool:
    """Whether BIC prefers a rise to no change at all by the asked margin (a flat curve has one parameter)."""
    return best.deviance - (onset.PARAMETERS - 1) * math.log(len(curve.loss)) > EVIDENCE


def _absent_before(curve: Curve, best: onset.Fit) -> bool:
    """Whether enough checkpoints lie above eta, and eta so low that they cover enough loss is likely enough."""
    low_enough = best.eta <= float(curve.loss.max()) - MIN_ABSENT_RANGE * float(np.ptp(curve.loss))
    before = int((curve.loss >= float(best.quantile(0.5))).sum())
    return before >= MIN_ABSENT and float(best.likelihood[low_enough].sum()) >= MIN_ABSENT_LIKELY


def _level_above(curve: Curve, eta: float) -> float:
    """Mean gain of the checkpoints above eta, 0 where there are none."""
    above = curve.gain[curve.loss >= eta]
    return float(above.mean()) if len(above) else 0.0


def _own_share(curve: Curve) -> float:
    """How much of the items' standard errors belongs to a checkpoint itself, at most 1. Where every checkpoint answers the same items, what
    makes these hard is common to all and says nothing against a trend: a checkpoint's own noise is its scatter about the line between its
    neighbours in loss within its run."""
    order = np.lexsort((-curve.loss, curve.run))
    loss, gain, run = curve.loss[order], curve.gain[order], curve.run[order]
    inner = (run[2:] == run[:-2]) & (loss[2:] < loss[:-2])
    if inner.sum() < MIN_CHECKPOINTS // 2:
        return 1.0
    before, at, after = loss[:-2][inner], loss[1:-1][inner], loss[2:][inner]
    share = (before - at) / (before - after)
    off = gain[1:-1][inner] - (1 - share) * gain[:-2][inner] - share * gain[2:][inner]
    scatter = float(np.mean(off**2 / (1 + (1 - share) ** 2 + share**2))) ** 0.5
    return float(np.clip(scatter / np.median(curve.noise), 0.01, 1.0))


def _without_rise(curve: Curve) -> Verdict:
    """The verdict on a curve that never clearly leaves chance."""
    trend = _trend_of(curve)
    if trend == "inverse" and float(np.ptp(curve.gain)) > 2 * curve.guess:
        return "inverse"
    level, item_noise = float(np.mean(curve.gain)), float(np.median(curve.noise))
    if trend == "no_trend" and abs(level) > _LEVEL * item_noise:
        return "no_trend"
    return "not_reached"


def _trend_of(curve: Curve) -> Verdict:
    """`gradual` or `inverse` when BIC prefers a rise or a fall with falling loss to a constant, otherwise `no_trend`."""
    curve = thinned(curve)
    level = float(np.median(curve.gain))
    turned = [replace(curve, gain=sign * (curve.gain - level)) for sign in (1.0, -1.0)]
    rising, falling = (onset.rough(one, bound=float(one.gain.max())) for one in turned)
    best = max(rising, falling, key=lambda found: found.deviance)
    if not _convincing(best, curve):
        return "no_trend"
    return "gradual" if best is rising else "inverse"
