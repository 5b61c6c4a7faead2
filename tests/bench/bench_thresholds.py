"""How far thresholds can be trusted: verdicts, error of eta and coverage of its interval on curves with a planted truth.

    python -m tests.bench.bench_thresholds [--curves 40] [--bootstrap 200]

One line per setting and shape. `right`: share of curves that got the planted verdict. `error`: median distance of eta from
the planted threshold, in nats; `best`: the same of a rival that is told the noise and the shape and fits only eta, stretch and
height to all checkpoints. `width`: median of eta_high - eta_low; `covers`: share of 95 % intervals that hold the planted threshold.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from losslens.analysis import thresholds
from tests.simulated_curves import CHANCE, HELD_OUT, RISES, SHAPES, TUNED, Floats, simulate

Setting = dict[str, Any]
SETTINGS: dict[str, Setting] = {
    "4 runs, 200 items": {},
    "4 runs, 50 items": {"items": 50},
    "4 runs, 2000 items": {"items": 2000},
    "4 runs of 60, 1000 items": {"checkpoints": 60, "items": 1000},
    "4 runs, runs .02 apart, 2000 items": {"items": 2000, "spread": 0.02, "wobble": 0.01},
    "4 runs, runs .05 apart, noisy": {"spread": 0.05, "wobble": 0.02},
    "1 run": {"runs": 1},
    "1 run of 100, 2000 items": {"runs": 1, "checkpoints": 100, "items": 2000},
}
OTHER_SETTINGS: dict[str, Setting] = {
    "2 options, 1000 items": {"chance": 0.5, "items": 1000},
    "open question, even spacing": {"chance": 0.0, "items": 500, "spacing": "even"},
    "7 options, 10 runs of 14": {"chance": 1 / 7, "items": 500, "runs": 10, "checkpoints": 14},
    "3 runs .03 apart, 1000 items": {"runs": 3, "items": 1000, "spread": 0.03, "checkpoints": 40},
    "noise with memory": {"items": 2000, "wobble": 0.03, "memory": 0.8, "checkpoints": 40},
}
COLUMNS = f"{'':28}{'right':>6}{'error':>7}{'best':>7}{'width':>7}{'covers':>7}  verdicts"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--curves", type=int, default=40)
    parser.add_argument("--bootstrap", type=int, default=200)
    given = parser.parse_args()
    started = time.process_time()
    parts = {
        "Shapes that constants were chosen on": (TUNED, SETTINGS),
        "Shapes held out": (HELD_OUT, SETTINGS),
        "Settings held out, all shapes": (tuple(SHAPES), OTHER_SETTINGS),
    }
    curves = 0
    for title, (shapes, settings) in parts.items():
        print(f"\n{title}")
        found = [row for name, setting in settings.items() for row in table(name, setting, shapes, given.curves, given.bootstrap)]
        curves += len(found)
        print(summary(found))
    print(f"\n{curves} curves, {(time.process_time() - started) / curves * 1000:.0f} ms of one core each, simulation and rival included")


def table(name: str, setting: Setting, shapes: tuple[str, ...], count: int, bootstrap: int) -> Iterator[dict[str, Any]]:
    """Print one setting; yields a record for each curve."""
    print(f"{name}\n{COLUMNS}")
    for shape in shapes:
        rows = [one(shape, setting, seed, bootstrap) for seed in range(count)]
        print(line(shape, rows), flush=True)
        yield from rows


def one(shape: str, setting: Setting, seed: int, bootstrap: int) -> dict[str, Any]:
    """The verdict on one simulated curve beside its truth. Thresholds lie between 2 and 2.5."""
    eta = 2.0 + 0.5 * float(np.random.default_rng([seed, 7]).random())
    points = simulate(shape, seed=seed, eta=eta, **setting)
    row: dict[str, Any] = thresholds(points, bootstrap=bootstrap).to_pylist()[0]
    truth = {"shape": shape, "wanted": SHAPES[shape], "planted": eta}
    return row | truth | {"best": abs(told(points, shape, eta) - eta) if shape in RISES else None}


def told(points: pa.Table, shape: str, eta: float) -> float:
    """Eta by who knows the shape but for its stretch along the loss and its height: the median of the likelihood."""
    trained = points.filter(np.asarray(points["step"]) > 0)
    loss, value, n, chance = (np.asarray(trained[name], dtype=float) for name in ("loss", "value", "n", "chance"))
    gain = (value - chance) / (1 - chance)
    noise = np.sqrt(np.maximum(value * (1 - value), CHANCE / n) / n) / (1 - chance)
    etas, stretches = np.linspace(eta - 0.4, eta + 0.4, 161), np.geomspace(0.4, 2.5, 25)
    below = np.maximum(etas[:, None] - loss, 0.0)
    squares = np.stack([_misfit(RISES[shape](below * stretch), gain, noise) for stretch in stretches])
    excess = (squares - squares.min()) / max(squares.min() / len(loss), 1.0)
    likelihood = np.exp(-excess / 2).sum(axis=0)
    return float(np.interp(0.5, np.cumsum(likelihood) / likelihood.sum(), etas))


def _misfit(rise: Floats, gain: Floats, noise: Floats) -> Floats:
    """Weighted squares at the best height; `rise` has a row for each eta."""
    weight = noise**-2.0
    height = np.maximum((rise * gain) @ weight, 0.0) / np.maximum(rise**2 @ weight, 1e-12)
    misfit: Floats = (height[:, None] * rise - gain) ** 2 @ weight
    return misfit


def line(shape: str, rows: list[dict[str, Any]]) -> str:
    """One row of the calibration table."""
    verdicts = Counter(row["verdict"] for row in rows)
    figures = f"{'-':>7}{'-':>7}{'-':>7}{'-':>7}"
    found = [row for row in rows if row["eta"] is not None]
    if shape in RISES and found:
        error = np.median([abs(row["eta"] - row["planted"]) for row in found])
        width = np.median([row["eta_high"] - row["eta_low"] for row in found])
        figures = f"{error:7.3f}{np.median([row['best'] for row in rows]):7.3f}{width:7.3f}{np.mean(held(found)):7.2f}"
    shown = ", ".join(f"{verdict} {count}" for verdict, count in verdicts.most_common())
    return f"  {shape:26}{verdicts[SHAPES[shape]] / len(rows):6.2f}{figures}  {shown}"


def held(found: list[dict[str, Any]]) -> list[bool]:
    """Whether each interval holds the planted threshold."""
    return [row["eta_low"] <= row["planted"] <= row["eta_high"] for row in found]


def summary(rows: list[dict[str, Any]]) -> str:
    """One line over all curves of a part."""
    onsets = [row for row in rows if row["wanted"] == "emergent" and row["eta"] is not None]
    others = [row for row in rows if row["wanted"] != "emergent"]
    errors = np.array([[abs(row["eta"] - row["planted"]), row["best"]] for row in onsets])
    false = np.mean([row["verdict"] == "emergent" for row in others])
    medians = "{:.3f} nats (told the shape: {:.3f})".format(*np.median(errors, axis=0))
    return f"median error {medians}, {np.mean(held(onsets)):.1%} of intervals hold eta, {false:.1%} of other curves called emergent"


if __name__ == "__main__":
    main()
