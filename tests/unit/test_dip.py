"""The dip against its definition (a linear program), against published critical values, and on samples whose dip is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from losslens.analysis.curves import Floats
from losslens.analysis.dip import dip, p_value


def by_definition(sample: Floats) -> float:
    """The least distance from any distribution function with one mode, over all places for the mode."""
    place, count = np.unique(sample, return_counts=True)
    return min(_with_mode(place, np.cumsum(count) / len(sample), mode) for mode in range(len(place)))


def _with_mode(place: Floats, after: Floats, mode: int) -> float:
    """Unknown: G at each place, G just before its mode, and the distance."""
    before, edge, distance = np.concatenate([[0.0], after[:-1]]), len(place), len(place) + 1
    rows, bounds = [], []

    def at_most(bound: float, parts: dict[int, float]) -> None:
        rows.append([parts.get(column, 0.0) for column in range(len(place) + 2)])
        bounds.append(bound)

    for i in range(len(place)):
        at_most(-after[i], {i: -1.0, distance: -1.0})
        at_most(before[i], {edge if i == mode else i: 1.0, distance: -1.0})
    at_most(-before[mode], {edge: -1.0, distance: -1.0})
    at_most(after[mode], {mode: 1.0, distance: -1.0})
    at_most(0.0, {edge: 1.0, mode: -1.0})
    for side, sign in (([*range(mode), edge], 1.0), (list(range(mode, len(place))), -1.0)):
        x = [place[mode] if i == edge else place[i] for i in side]
        for k in range(len(side) - 1):
            at_most(0.0, {side[k]: 1.0, side[k + 1]: -1.0})
        for k in range(len(side) - 2):  # convex before the mode, concave after it
            first, second = 1 / (x[k + 1] - x[k]), 1 / (x[k + 2] - x[k + 1])
            at_most(0.0, {side[k]: -sign * first, side[k + 1]: sign * (first + second), side[k + 2]: -sign * second})
    solved = linprog([0.0] * (len(place) + 1) + [1.0], A_ub=np.asarray(rows), b_ub=bounds, bounds=[(0, 1)] * (len(place) + 2))
    return float(solved.fun)


@pytest.mark.parametrize("seed", range(12))
def test_the_dip_is_what_its_definition_says(seed: int) -> None:
    random = np.random.default_rng(seed)
    samples = [random.random(random.integers(2, 12)), random.integers(0, 6, random.integers(2, 14)) / 5, random.normal(size=9) ** 3]
    samples.append(np.concatenate([random.normal(0, 0.1, 5), random.normal(1, 0.1, 4)]))
    for sample in samples:
        assert dip(sample) == pytest.approx(by_definition(sample), abs=1e-7), sample.tolist()


def test_dips_that_can_be_told() -> None:
    assert dip(np.array([0.3, 0.3, 0.3])) == 0.0  # one atom is one mode
    assert dip(np.arange(10.0)) == pytest.approx(1 / 20)  # as even as ten can be
    assert dip(np.array([0.0] * 5 + [1.0] * 5)) == pytest.approx(0.25)  # the most there is
    assert dip(np.array([0.0] * 4 + [1.0])) == pytest.approx(0.1)


def test_two_clear_groups_are_found_and_one_is_not() -> None:
    random = np.random.default_rng(1)
    one = random.normal(0.5, 0.05, 20)
    two = np.concatenate([random.normal(0.1, 0.05, 12), random.normal(0.9, 0.05, 8)])
    assert p_value(dip(two), 20) < 0.001
    assert p_value(dip(one), 20) > 0.2


@pytest.mark.parametrize(
    ("size", "half", "tenth", "twentieth"), [(5, 0.1216, 0.1768, 0.1864), (10, 0.0978, 0.1305, 0.1396), (20, 0.0733, 0.0972, 0.1051)]
)
def test_p_values_agree_with_published_critical_values(size: int, half: float, tenth: float, twentieth: float) -> None:
    """Of uniform samples: Maechler's table, which refines table 1 of Hartigan and Hartigan 1985."""
    assert [p_value(value, size) for value in (half, tenth, twentieth)] == pytest.approx([0.5, 0.1, 0.05], abs=0.025)
