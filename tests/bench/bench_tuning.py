"""How far `losslens tuning` can be trusted: planted etas by amount, found again. Prints a row for each design.

    python -m tests.bench.bench_tuning [--curves 16]

found: share of curves with an eta both untuned and at the largest amount; covers: of their shifts, and of the forecasts that are made,
the share whose interval holds the truth; width: mean half width in nats; forecast: share of curves that are forecast at all; error:
median absolute error of a forecast and of its rivals.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from statistics import mean, median

from losslens.analysis import tuning
from losslens.analysis.emergence import forecasts
from tests.simulated_tuning import Tuning, simulate

DESIGNS = {
    "4 runs of 10": Tuning(),
    "2 runs of 8": Tuning(runs=2, parents=8),
    "runs differ by amount": Tuning(jitter=0.03),
    "no move": Tuning(rise=0.0),
    "straight": Tuning(power=1.0),
    "steep at once": Tuning(power=0.15),
    "jump": Tuning(shape="jump"),
    "slow start": Tuning(shape="slow start"),
    "20 parents a run": Tuning(parents=20),
}


def measured(design: Tuning, curves: int) -> dict[str, float]:
    """One design's row."""
    shifts = 0
    lists: list[list[float]] = [[] for _ in range(6)]
    widths, covered, moved, made, hits, errors = lists
    rivals: dict[str, list[float]] = {"constant": [], "linear": []}
    for seed in range(curves):
        found = tuning.tuned(*simulate(design, seed))
        last = tuning.amounts(found).to_pylist()[-1]
        if last["shift"] is not None:
            shifts += 1
            widths.append((last["shift_high"] - last["shift_low"]) / 2)
            truth = design.at(design.amounts[-1]) - design.eta
            covered.append(last["shift_low"] <= truth <= last["shift_high"])
            moved.append(last["moved"] == "earlier")
        (forecast,) = forecasts(found, above=design.eta + 0.05).to_pylist()
        made.append(forecast["verdict"] == "forecast")
        if made[-1]:
            hits.append(forecast["predicted_low"] <= design.eta <= forecast["predicted_high"])
            errors.append(abs(forecast["predicted"] - design.eta))
            for name, wrong in rivals.items():
                wrong.append(abs(forecast[name] - design.eta))
    row = {"found": shifts / curves, "covers": _mean(covered), "width": _mean(widths), "moved": _mean(moved)}
    row |= {"forecast": mean(made), "covers ": _mean(hits), "error": median([*errors] or [math.nan])}
    return row | {name: median([*wrong] or [math.nan]) for name, wrong in rivals.items()}


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else math.nan


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=int, default=16)
    curves = parser.parse_args().curves
    names = None
    for name, design in DESIGNS.items():
        row = measured(design, curves)
        if names is None:
            names = list(row)
            print(f"{'':26}" + "".join(f"{heading:>10}" for heading in names))
        print(f"{name:26}" + "".join(f"{row[heading]:10.3f}" for heading in names), flush=True)


if __name__ == "__main__":
    main()
