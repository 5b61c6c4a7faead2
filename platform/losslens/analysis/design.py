"""How many sizes, tokens, checkpoints, seeds and items place a threshold within so much: designs are tried on simulated runs.

A design's runs follow a given law of loss; an ability with a planted eta is measured on their checkpoints with the noise of so
many items and of different trainings; the estimator of `thresholds` judges what comes out, over and over. See docs/DESIGN.md.

C curves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from losslens.analysis.curves import Bools, Floats, numbers
from losslens.analysis.simulated import RISES, Noise, Shape, simulated_runs
from losslens.analysis.thresholds import thresholds

ENOUGH = 0.8  # of the curves, that a design must place within the wanted distance
_AGAIN = 2  # times as many curves, fresh ones, judge what looked good: the best of many is partly luck
_TRIES = 5  # at most so many are judged again
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Ability:
    """Expected to appear within `unsure` of the loss `eta`, rising like one of `rises` (names of `simulated.RISES`)."""

    eta: float
    unsure: float = 0.0
    rises: tuple[str, ...] = ("linear",)


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """What would be trained and scored. `paths` has for each run the losses of its checkpoints, `untrained` is the loss before;
    `flops` are those of all training and scoring; `budget` multiplies the study's tokens."""

    sizes: tuple[str, ...]
    budget: float
    checkpoints: int
    seeds: int
    items: int
    paths: tuple[Floats, ...]
    untrained: float
    flops: float


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """Of each curve [C]: half the width of eta's interval and its distance from the planted one, both infinite where no threshold
    was found; whether the interval holds the planted one."""

    half_width: Floats
    error: Floats
    held: Bools

    def reached(self, within: float) -> float:
        """The share of curves whose interval is at most +-`within` and whose eta is at most that far off."""
        return float(np.mean((self.half_width <= within) & (self.error <= within)))


def tried(design: Design, ability: Ability, noise: Noise, *, curves: int, seed: int = 0, first: int = 0) -> Outcome:
    """The design on simulated curves `first` to `first + curves`; the same curve of another design has the same ability."""
    tables, planted = [], []
    for number in range(first, first + curves):
        random = np.random.default_rng([seed, number])
        eta = ability.eta + ability.unsure * random.uniform(-1, 1)
        rise = RISES[ability.rises[number % len(ability.rises)]]
        items = replace(noise, items=design.items)
        planted.append(eta)
        tables.append(_simulated(design, _below(eta, rise), items, random, number))
    found = thresholds(pa.concat_tables(tables), seed=seed).sort_by("shots")
    low, middle, high = (numbers(found, name) for name in ("eta_low", "eta", "eta_high"))
    truth, absent = np.asarray(planted), np.isnan(middle)
    apart = [np.where(absent, np.inf, distance) for distance in ((high - low) / 2, np.abs(middle - truth))]
    return Outcome(apart[0], apart[1], held=(low <= truth) & (truth <= high))


def _below(eta: float, rise: Shape) -> Shape:
    return lambda loss: rise(np.maximum(eta - loss, 0.0))


def _simulated(design: Design, gain: Shape, noise: Noise, random: np.random.Generator, number: int) -> pa.Table:
    """One curve, whose number is its `shots`: what tells curves apart and sorts as numbers do."""
    return simulated_runs(design.paths, gain, noise, random, untrained=design.untrained, shots=number)


def compared(
    designs: Sequence[Design],
    ability: Ability,
    noise: Noise,
    *,
    within: float,
    curves: int = 12,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> list[dict[str, Any]]:
    """One row a design, by FLOPs; `cheapest` marks the first that `ENOUGH` of fresh curves reach.

    A row says how often a threshold was found, the medians of its half width and error over all curves (None: not found in most),
    how often the interval held the planted one where it was found, and the share that `reached` +-`within`.
    """
    ordered = sorted(designs, key=lambda design: design.flops)
    rows = []
    for number, design in enumerate(ordered):
        progress(number, len(ordered), "")
        rows.append(_row(design, tried(design, ability, noise, curves=curves, seed=seed), within))
    good = [place for place, row in enumerate(rows) if row["reached"] >= ENOUGH]
    for place in good[:_TRIES]:
        progress(len(ordered), len(ordered), "the cheapest again")
        again = tried(ordered[place], ability, noise, curves=_AGAIN * curves, seed=seed, first=curves)
        rows[place] = _row(ordered[place], again, within)
        if rows[place]["reached"] >= ENOUGH:
            rows[place]["cheapest"] = True
            break
    progress(len(ordered), len(ordered), "")
    return rows


def _row(design: Design, outcome: Outcome, within: float) -> dict[str, Any]:
    found = np.isfinite(outcome.half_width)
    half_width, error = (float(np.median(values)) for values in (outcome.half_width, outcome.error))
    return {
        "sizes": ",".join(design.sizes),
        "n_sizes": len(design.sizes),
        "tokens_factor": design.budget,
        "checkpoints": design.checkpoints,
        "seeds": design.seeds,
        "items": design.items,
        "n_runs": len(design.paths),
        "flops": design.flops,
        "found": float(found.mean()),
        "half_width": half_width if np.isfinite(half_width) else None,
        "error": error if np.isfinite(error) else None,
        "coverage": float(outcome.held[found].mean()) if found.any() else None,
        "within": within,
        "reached": outcome.reached(within),
        "curves": len(found),
        "cheapest": False,
    }
