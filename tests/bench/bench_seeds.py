"""How many seeds a dip test needs: how often it says p < .05 of two groups, by their distance and shares, and of one.

    python -m tests.bench.bench_seeds [--samples 400]

`apart` is the distance of the groups' means in standard deviations of a group. `one steep rise`: all seeds share a curve that rises from
.1 to .9 within .05 nats, each shifted along the loss by a normal deviation of .05, read off in the middle with the noise of 200 items.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from losslens.analysis.curves import Floats
from losslens.analysis.dip import dip, p_value

SEEDS = (4, 5, 6, 8, 10, 12, 16, 20, 30, 50)
Draw = Callable[[np.random.Generator, int], Floats]


def two_groups(apart: float, share: float) -> Draw:
    """Seeds of two normal groups, of which the upper has `share` of the probability."""
    return lambda random, count: random.normal(apart * (random.random(count) < share), 1.0)


def steep_rise(random: np.random.Generator, count: int) -> Floats:
    """One curve for all seeds, shifted along the loss; the last term breaks ties of counts."""
    truth = np.clip(0.5 - random.normal(0, 0.05, count) / 0.05 * 0.8, 0.1, 0.9)
    return random.binomial(200, truth) / 200 + random.uniform(-1, 1, count) * 1e-6


CASES: dict[str, Draw] = {
    "one group, uniform": lambda random, count: random.random(count),
    "one group, normal": lambda random, count: random.normal(size=count),
    "one group, exponential": lambda random, count: random.exponential(size=count),
    **{f"half and half, {apart} apart": two_groups(apart, 0.5) for apart in (3, 4, 6, 10)},
    **{f"one in four, {apart} apart": two_groups(apart, 0.25) for apart in (4, 6, 10)},
    "one steep rise": steep_rise,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, default=400)
    given = parser.parse_args()
    print(f"{'seeds':26}" + "".join(f"{count:6}" for count in SEEDS))
    for name, draw in CASES.items():
        print(f"{name:26}" + "".join(f"{found(draw, count, given.samples):6.2f}" for count in SEEDS), flush=True)


def found(draw: Draw, count: int, samples: int) -> float:
    """In how many of the samples of `count` seeds the test says p < .05."""
    random = np.random.default_rng(count)
    return float(np.mean([p_value(dip(draw(random, count)), count) < 0.05 for _ in range(samples)]))


if __name__ == "__main__":
    main()
