"""How far `same-curve` can be trusted: on planted families, how often its intervals hold the truth and what its verdicts are.

    python -m tests.bench.bench_same_curve [--families 40]

A line for each kind of family: `interval` and `largest` are the shares of families in which the interval of the mean effect, and that
at the place of the largest estimate, hold the planted effect (none, or 4 points from the smallest to the largest size); then verdicts
at a margin of 2 points. The last line times a study of 4,000 checkpoints.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from losslens.analysis import same_curve
from tests.simulated_runs import Family, simulate

_SHAPES = ("onset, linear", "onset, jump", "gradual, concave")
_RUNS: list[dict[str, Any]] = [
    {"sizes": 4, "seeds": 1},
    {"sizes": 3, "seeds": 2},
    {"sizes": 5, "seeds": 2},
    {"sizes": 5, "seeds": 6},
    {"sizes": 6, "seeds": 12, "checkpoints": 1},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--families", type=int, default=40)
    given = parser.parse_args()
    print(f"{'shape':18}{'runs':>6}{'points':>7}{'spread':>7}{'effect':>7}{'bias':>7}{'interval':>9}{'largest':>8}  verdicts")
    for runs in _RUNS:
        for shape in _SHAPES:
            for spread in (0.0, 0.01):
                for effect in (0.0, 0.04):
                    print(line(Family(shape=shape, effect=effect, spread=spread, shift=spread, **runs), given.families))
    whole_study()


def line(family: Family, count: int) -> str:
    """One row of the table."""
    rows = [same_curve(*simulate(family, seed)).to_pylist()[0] for seed in range(count)]
    found, truth = [row for row in rows if row["effect"] is not None], 100 * family.effect
    interval = np.mean([row["effect_low"] <= truth <= row["effect_high"] for row in found])
    largest = np.mean([row["largest_low"] <= truth <= row["largest_high"] for row in found])
    bias = np.mean([row["effect"] for row in found]) - truth
    verdicts = ", ".join(f"{verdict} {number}" for verdict, number in Counter(row["verdict"] for row in rows).most_common())
    head = f"{family.shape:18}{family.sizes * family.seeds:6}{family.checkpoints:7}{family.spread:7.2f}{family.effect:7.2f}"
    return f"{head}{bias:7.2f}{interval:9.2f}{largest:8.2f}  {verdicts}"


def whole_study() -> None:
    """4,000 checkpoints of 40 runs, 12 tasks under 4 metrics, against 4 losses."""
    curve, runs = simulate(Family(sizes=8, seeds=5, checkpoints=100), 0)
    plain = curve.drop_columns(["task", "metric", "loss_dataset", "loss", "value"])
    loss, value = curve["loss"].to_numpy(), curve["value"].to_numpy()
    tables = []
    for task, metric, dataset in itertools.product(range(12), range(4), range(4)):
        columns = {"task": [f"task{task}"], "metric": [f"metric{metric}"], "loss_dataset": [f"loss{dataset}"]}
        named = plain
        for name, values in columns.items():
            named = named.append_column(name, pa.array(values * len(curve)))
        numbers = {"loss": loss + 0.1 * dataset, "value": value * (1 - 0.01 * (4 * task + metric))}  # so that no result is that of another
        for name, column in numbers.items():
            named = named.append_column(name, pa.array(column))
        tables.append(named)
    whole = pa.concat_tables(tables)
    began, used = time.perf_counter(), time.process_time()
    found = same_curve(whole, runs)
    seconds, busy = time.perf_counter() - began, time.process_time() - used
    print(f"{len(curve):,} checkpoints, 12 tasks x 4 metrics x 4 losses: {len(found)} rows in {seconds:.1f} s, {busy:.1f} s of one core")


if __name__ == "__main__":
    main()
