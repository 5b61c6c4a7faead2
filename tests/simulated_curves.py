"""Curves whose truth is known: the measuring stick of the threshold analysis, for its tests and its bench.

Model and constants of the analysis were chosen on the shapes of `TUNED`; those of `HELD_OUT` were first tried when they stood.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa

from losslens.analysis.curves import Floats
from losslens.analysis.simulated import RISES as BY_NAME
from losslens.analysis.simulated import Noise, Shape, curve_table, simulated_runs

__all__ = ["CHANCE", "ETA", "HELD_OUT", "OTHERS", "RISES", "SHAPES", "TUNED", "Floats", "curve_table", "performance", "simulate"]

ETA = 2.2  # planted threshold of the `onset` shapes
CHANCE = 0.25

RISES: dict[str, Shape] = {f"onset, {name}": rise for name, rise in BY_NAME.items()}
OTHERS: dict[str, tuple[str, Shape]] = {
    # what an honest analysis says, normalised performance at each loss
    "gradual, linear": ("gradual", lambda loss: 0.7 * (4.2 - loss) / 2.8),
    "gradual, concave": ("gradual", lambda loss: 0.6 * -np.expm1(-(4.2 - loss) / 1.0)),
    "gradual, convex": ("gradual", lambda loss: 0.6 * ((4.2 - loss) / 2.8) ** 1.5),
    "gradual, small gain": ("gradual", lambda loss: 0.25 * (4.2 - loss) / 2.8),
    "flat": ("not_reached", lambda loss: np.zeros_like(loss)),
    "inverse": ("inverse", lambda loss: -0.25 * (4.2 - loss) / 2.8),
    "gradual, logistic": ("gradual", lambda loss: 0.8 / (1 + np.exp((loss - 2.4) / 0.6))),
    "gradual, faster later": ("gradual", lambda loss: 0.12 * (4.2 - loss) + 0.3 * np.maximum(2.4 - loss, 0)),
    "flat, a little above": ("not_reached", lambda loss: np.full_like(loss, 0.015)),
    "inverse, late": ("inverse", lambda loss: -0.3 * np.maximum(2.4 - loss, 0)),
}
TUNED = (*list(RISES)[:9], *list(OTHERS)[:6])
HELD_OUT = (*list(RISES)[9:], *list(OTHERS)[6:])
SHAPES = dict.fromkeys(RISES, "emergent") | {name: wanted for name, (wanted, _) in OTHERS.items()}
"""What an honest analysis says of each shape."""


def simulate(
    shape: str,
    *,
    seed: int,
    runs: int = 4,
    checkpoints: int = 22,
    items: int = 200,
    spread: float = 0.0,
    wobble: float = 0.0,
    memory: float = 0.0,
    chance: float = CHANCE,
    eta: float = ETA,
    spacing: Literal["slowing", "even"] = "slowing",
) -> pa.Table:
    """Rows of view `curve`: `runs` trainings of a family, each from a loss of 4 down to its own lowest.

    `items`, `chance`, `spread`, `wobble` and `memory` are those of `Noise`. `spacing`: even in loss, or wider early as in training.
    """
    random = np.random.default_rng([seed, *shape.encode(), runs, items])
    paths = [_losses(1.4 + 0.1 * run / max(runs - 1, 1), checkpoints, spacing) for run in range(runs)]
    noise = Noise(items, chance, spread, wobble, memory)
    return simulated_runs(paths, lambda loss: performance(shape, loss, eta), noise, random, untrained=4.85)


def performance(shape: str, loss: Floats, eta: float = ETA) -> Floats:
    """The planted truth."""
    if shape in RISES:
        return RISES[shape](np.maximum(eta - loss, 0.0))
    return OTHERS[shape][1](loss)


def _losses(lowest: float, checkpoints: int, spacing: str) -> Floats:
    if spacing == "even":
        return np.linspace(4.0, lowest, checkpoints)
    progress = np.geomspace(0.025, 1.0, checkpoints)
    falling: Floats = lowest + (4.0 - lowest) * ((1 / progress) ** 0.35 - 1) / (40**0.35 - 1)
    return falling
