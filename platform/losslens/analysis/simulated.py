"""Curves whose truth is known: what runs of a family would show of an ability that appears at a planted loss.

They measure how far thresholds can be trusted (`tests/bench/bench_thresholds.py`) and how many runs a question needs
(`design`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from losslens.analysis.curves import Floats

Shape = Callable[[Floats], Floats]

RISES: dict[str, Shape] = {
    # normalised performance at a distance below eta
    "linear": lambda below: np.minimum(1.2 * below, 0.9),
    "saturating": lambda below: 0.8 * -np.expm1(-below / 0.2),
    "jump": lambda below: np.where(below > 0, 0.4 + 0.5 * below, 0.0),
    "slow start": lambda below: 0.9 * -np.expm1(-((below / 0.4) ** 2)),
    "step": lambda below: np.where(below > 0, 0.6, 0.0),
    "root": lambda below: 0.7 * np.sqrt(np.minimum(below / 0.8, 1.0)),
    "small jump": lambda below: np.where(below > 0, 0.15 + 0.6 * below, 0.0),
    "power 1.5": lambda below: 0.8 * -np.expm1(-((below / 0.3) ** 1.5)),
    "very slow start": lambda below: 0.9 * -np.expm1(-((below / 0.5) ** 3)),
    "logarithmic": lambda below: 0.25 * np.log1p(below / 0.1),
    "hyperbolic tangent": lambda below: 0.8 * np.tanh(below / 0.35),
    "half a cosine": lambda below: 0.45 * (1 - np.cos(np.pi * np.minimum(below / 0.8, 1.0))),
    "two stages": lambda below: 0.3 * np.minimum(below / 0.1, 1.0) + 0.4 * np.clip((below - 0.4) / 0.3, 0.0, 1.0),
    "jump then slow": lambda below: np.where(below > 0, 0.25 + 0.5 * np.minimum(below, 1.0) ** 2, 0.0),
    "power 1.25": lambda below: 0.8 * np.minimum(below / 0.9, 1.0) ** 1.25,
}


@dataclass(frozen=True, slots=True)
class Noise:
    """What stands between an ability and its measurement.

    `items` of a task that guessing gets right with `chance`; `spread` is the standard deviation between runs of the loss
    at which they reach the same performance (in the loss's unit), `wobble` that of a checkpoint's true performance (normalised), of
    which a share `memory` stays to the next checkpoint; `jitter` that of a checkpoint's loss.
    """

    items: int = 200
    chance: float = 0.25
    spread: float = 0.0
    wobble: float = 0.0
    memory: float = 0.0
    jitter: float = 0.01


def simulated_runs(
    paths: Sequence[Floats], gain: Shape, noise: Noise, random: np.random.Generator, *, untrained: float, **names: Any
) -> pa.Table:
    """Rows of view `curve`: a run for each path, the losses of its checkpoints, and a step 0 at the loss `untrained`.

    `gain` is normalised performance at each loss; `names` are the curve's columns of that name, such as task.
    """
    rows: list[dict[str, Any]] = []
    for run, path in enumerate(paths):
        loss = path + random.normal(0, noise.jitter, len(path))
        ability = gain(loss - random.normal(0, noise.spread)) + _wobble(random, len(path), noise.wobble, noise.memory)
        right = random.binomial(noise.items, np.clip(noise.chance + (1 - noise.chance) * ability, 0, 1))
        start = random.binomial(noise.items, noise.chance) / noise.items
        rows.append({"step": 0, "loss": untrained, "value": start, "run_id": f"run{run}"})
        points = zip(loss.tolist(), (right / noise.items).tolist(), strict=True)
        rows.extend({"step": step, "loss": x, "value": y, "run_id": f"run{run}"} for step, (x, y) in enumerate(points, 1))
    return curve_table(rows, n=noise.items, chance=noise.chance, **names)


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
