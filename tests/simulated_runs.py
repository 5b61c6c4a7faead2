"""Families of runs whose differences are known: the measuring stick of the same-curve analysis, for its tests and its bench."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

CHANCE = 0.25
SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    # normalised performance at each loss
    "onset, linear": lambda loss: np.minimum(1.2 * np.maximum(2.2 - loss, 0.0), 0.9),
    "onset, jump": lambda loss: np.where(loss < 2.2, 0.4 + 0.5 * (2.2 - loss), 0.0),
    "gradual, concave": lambda loss: 0.6 * -np.expm1(-(4.2 - loss)),
}


@dataclass(frozen=True)
class Family:
    """`sizes` x `seeds` runs; `effect` is added to the score of the largest size, in parts to those between (0.01: a point).

    `spread`: standard deviation of a run's own constant deviation, and of the height of a wave it has along the loss; `shift`: of the
    loss at which it has its abilities. `late`: the effect grows from 0 at the highest loss to twice `effect` at the lowest.
    """

    shape: str = "onset, linear"
    sizes: int = 5
    seeds: int = 2
    checkpoints: int = 22
    items: int = 1000
    effect: float = 0.0
    spread: float = 0.0
    shift: float = 0.0
    late: bool = False


def simulate(family: Family, seed: int) -> tuple[pa.Table, pa.Table]:
    """Rows of views `curve` and `runs`."""
    random = np.random.default_rng([seed, family.sizes, family.seeds])
    points, runs = [], []
    for number in range(family.sizes * family.seeds):
        share = (number // family.seeds) / (family.sizes - 1)
        params = int(1e8 * 30**share)
        run = {"run_id": f"run{number:03}", "study": "s", "size": f"{params / 1e6:.0f}M", "params": params, "seed": number % family.seeds}
        runs.append(run | {"optimizer": "muon" if share > 0.5 else "adamw"})
        lowest = 2.0 - 0.5 * share + random.normal(0, 0.03)
        progress = np.geomspace(0.025, 1.0, family.checkpoints) if family.checkpoints > 1 else np.asarray([random.uniform(0.1, 1.0)])
        loss = lowest + (4.0 - lowest) * ((1 / progress) ** 0.35 - 1) / (40**0.35 - 1)
        own = random.normal(0, family.spread) + random.normal(0, family.spread) * np.sin(3 * loss + random.uniform(0, 6))
        ability = CHANCE + (1 - CHANCE) * SHAPES[family.shape](loss - random.normal(0, family.shift))
        more = family.effect * share * ((4.0 - loss) / 1.25 if family.late else 1.0)
        value = random.binomial(family.items, np.clip(ability + own + more, 0.0, 1.0)) / family.items
        tokens = 2e9 * (1 + 3 * share) * progress
        for step, (x, y, used) in enumerate(zip(loss.tolist(), value.tolist(), tokens.tolist(), strict=True), 1):
            position = {"checkpoint_id": f"{number}/{step}", "step": step, "tokens": int(used), "flops": 6.0 * params * used}
            points.append({"run_id": run["run_id"], "loss": x, "value": y, "stderr": (y * (1 - y) / family.items) ** 0.5} | position)
    same: dict[str, Any] = {"study": "s", "task": "t", "format": "letter", "shots": 0, "metric": "acc"}
    same |= {"loss_dataset": "heldout", "loss_unit": "nats/token"}
    same |= {"n": family.items, "chance": CHANCE, "higher_is_better": True}
    return pa.Table.from_pylist([same | point for point in points]), pa.Table.from_pylist(runs)
