"""Curves whose truth is known: the measuring stick of the threshold analysis, for its tests and its bench.

Model and constants of the analysis were chosen on the shapes of `TUNED`; those of `HELD_OUT` were first tried when they stood.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pyarrow as pa

ETA = 2.2  # planted threshold of the `onset` shapes
CHANCE = 0.25

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Shape = Callable[[Floats], Floats]

RISES: dict[str, Shape] = {
    # normalised performance at a distance below eta
    "onset, linear": lambda below: np.minimum(1.2 * below, 0.9),
    "onset, saturating": lambda below: 0.8 * -np.expm1(-below / 0.2),
    "onset, jump": lambda below: np.where(below > 0, 0.4 + 0.5 * below, 0.0),
    "onset, slow start": lambda below: 0.9 * -np.expm1(-((below / 0.4) ** 2)),
    "onset, step": lambda below: np.where(below > 0, 0.6, 0.0),
    "onset, root": lambda below: 0.7 * np.sqrt(np.minimum(below / 0.8, 1.0)),
    "onset, small jump": lambda below: np.where(below > 0, 0.15 + 0.6 * below, 0.0),
    "onset, power 1.5": lambda below: 0.8 * -np.expm1(-((below / 0.3) ** 1.5)),
    "onset, very slow start": lambda below: 0.9 * -np.expm1(-((below / 0.5) ** 3)),
    "onset, logarithmic": lambda below: 0.25 * np.log1p(below / 0.1),
    "onset, hyperbolic tangent": lambda below: 0.8 * np.tanh(below / 0.35),
    "onset, half a cosine": lambda below: 0.45 * (1 - np.cos(np.pi * np.minimum(below / 0.8, 1.0))),
    "onset, two stages": lambda below: 0.3 * np.minimum(below / 0.1, 1.0) + 0.4 * np.clip((below - 0.4) / 0.3, 0.0, 1.0),
    "onset, jump then slow": lambda below: np.where(below > 0, 0.25 + 0.5 * np.minimum(below, 1.0) ** 2, 0.0),
    "onset, power 1.25": lambda below: 0.8 * np.minimum(below / 0.9, 1.0) ** 1.25,
}
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

    `spread` is the standard deviation between runs of the loss at which they reach the same performance (in the loss's
    unit), `wobble` that of a checkpoint's true performance (normalised), of which a share `memory` stays to the next
    checkpoint; `items` gives the binomial noise on top. `spacing`: even in loss, or wider early as in training.
    """
    random = np.random.default_rng([seed, *shape.encode(), runs, items])
    rows: list[dict[str, Any]] = []
    for run in range(runs):
        loss = _losses(1.4 + 0.1 * run / max(runs - 1, 1), checkpoints, spacing) + random.normal(0, 0.01, checkpoints)
        gain = performance(shape, loss - random.normal(0, spread), eta) + _wobble(random, checkpoints, wobble, memory)
        value = random.binomial(items, np.clip(chance + (1 - chance) * gain, 0, 1)) / items
        rows.append({"step": 0, "loss": 4.85, "value": random.binomial(items, chance) / items, "run_id": f"run{run}"})
        points = zip(loss.tolist(), value.tolist(), strict=True)
        rows.extend({"step": step, "loss": x, "value": y, "run_id": f"run{run}"} for step, (x, y) in enumerate(points, 1))
    return curve_table(rows, n=items, chance=chance)


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


def _wobble(random: np.random.Generator, checkpoints: int, size: float, memory: float) -> Floats:
    fresh = random.normal(0, size, checkpoints)
    for place in range(1, checkpoints):
        fresh[place] = memory * fresh[place - 1] + (1 - memory**2) ** 0.5 * fresh[place]
    return fresh


def curve_table(rows: list[dict[str, Any]], *, n: int, chance: float, **names: Any) -> pa.Table:
    """Rows of view `curve` from rows with at least run_id, step, loss and value: an accuracy over `n` items."""
    same = {
        "study": "s",
        "task": "t",
        "format": "letter",
        "shots": 0,
        "metric": "acc",
        "loss_dataset": "heldout",
        "loss_unit": "nats/token",
    }
    rest = {"n": n, "chance": chance, "higher_is_better": True, "tokens": None}
    return pa.Table.from_pylist([same | rest | names | {"stderr": (row["value"] * (1 - row["value"]) / n) ** 0.5} | row for row in rows])
