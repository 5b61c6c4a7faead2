"""Tuned models whose thresholds are known: eta(D) = eta_0 + k D^p, for the tests of what tuning does and their bench."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from losslens.analysis.simulated import RISES

CHANCE = 0.25


@dataclass(frozen=True)
class Tuning:
    """`parents` checkpoints of each of `runs` runs, tuned on each of `amounts` tokens; every run's own eta is off by `spread`, and at each
    amount by `jitter` more."""

    eta: float = 2.2
    rise: float = 0.5  # of eta, at 100k tokens
    power: float = 0.4
    runs: int = 4
    parents: int = 10
    amounts: tuple[int, ...] = (0, 8_000, 16_000, 33_000, 66_000, 131_000)
    items: int = 200
    spread: float = 0.02
    jitter: float = 0.0
    shape: str = "linear"
    lowest: float = 1.6

    def at(self, tokens: int) -> float:
        """The planted eta."""
        return self.eta + self.rise * (tokens / 100_000) ** self.power if tokens else self.eta


def simulate(tuning: Tuning, seed: int) -> tuple[pa.Table, pa.Table]:
    """Rows of view `curve` of the tuned checkpoints, and their lineage."""
    random = np.random.default_rng([seed, tuning.runs, tuning.parents])
    points: list[dict[str, Any]] = []
    lineage: list[dict[str, Any]] = []
    for number in range(tuning.runs):
        progress = np.geomspace(0.05, 1.0, tuning.parents)
        lowest = tuning.lowest + 0.1 * (tuning.runs - 1 - number)
        path = lowest + (4.0 - lowest) * ((1 / progress) ** 0.35 - 1) / (20**0.35 - 1) + random.normal(0, 0.01, tuning.parents)
        own = random.normal(0, tuning.spread)
        off = {tokens: own + random.normal(0, tuning.jitter) for tokens in tuning.amounts}
        for step, loss in enumerate(path.tolist(), 1):
            run, parent = f"tuned-{number}-{step}", f"run{number}/{step}"
            lineage.append({"run_id": run, "corpus": "c", "parent": parent, "parent_run": f"run{number}", "parent_tokens": step})
            for tokens in tuning.amounts:
                gain = float(RISES[tuning.shape](np.maximum(tuning.at(tokens) + off[tokens] - np.asarray([loss]), 0.0))[0])
                value = random.binomial(tuning.items, min(CHANCE + (1 - CHANCE) * gain, 1.0)) / tuning.items
                points.append({"run_id": run, "checkpoint_id": f"{run}/{tokens}", "step": tokens // 1000, "tokens": tokens, "loss": loss}
                              | {"size": f"{number + 1}M", "params": (number + 1) * 10**6, "value": value}
                              | {"stderr": (value * (1 - value) / tuning.items) ** 0.5})  # fmt: skip
    same = {"study": "s-tuned", "task": "t", "format": "letter", "shots": 0, "metric": "acc", "loss_dataset": "parent/heldout"}
    same |= {"loss_unit": "nats/token", "chance": CHANCE, "higher_is_better": True}
    return pa.Table.from_pylist([same | {"n": tuning.items} | point for point in points]), pa.Table.from_pylist(lineage)
