"""The size beyond which more size gains little: planted laws give it back, at fixed data and at fixed compute."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from jobs.filters import Filters
from jobs.scaling import gains, laws
from losslens.analysis.curves import Floats
from losslens.analysis.marginal import beyond_at_compute, beyond_at_data, marginal
from losslens.analysis.scaling import Losses, scaling
from losslens.errors import UserError
from tests.synthetic import write_study

LAW: dict[str, float | None] = {"a": 400.0, "alpha": 0.34, "b": 410.0, "beta": 0.28, "floor": 1.69}
OF_SIZE_ALONE = LAW | {"b": None, "beta": None}


def loss(params: Floats | float, tokens: Floats | float) -> Floats:
    return np.asarray(400.0 / params**0.34 + 410.0 / tokens**0.28 + 1.69)


def measured(noise: float = 0.002) -> Losses:
    params = np.repeat(np.geomspace(1e8, 6.4e9, 6), 4)
    tokens = params * np.tile([10.0, 20, 50, 100], 6)
    wobble = np.exp(noise * np.random.default_rng(2).normal(size=24))
    return Losses("s", "heldout", "nats/token", params, tokens, loss(params, tokens) * wobble)


@pytest.mark.parametrize("margin", [0.3, 0.02, 0.001])
def test_doubling_gains_the_margin_at_that_size(margin: float) -> None:
    at_data = beyond_at_data(LAW, margin)
    assert loss(at_data, 1e11) - loss(2 * at_data, 1e11) == pytest.approx(margin, rel=1e-6)
    at_compute = beyond_at_compute(LAW, margin, 1e22)
    assert at_compute is not None
    read = 1e22 / 6 / at_compute
    assert loss(at_compute, read) - loss(2 * at_compute, read / 2) == pytest.approx(margin, rel=1e-6)
    assert at_compute < at_data


def test_compute_spent_best_is_where_a_vanishing_margin_leads() -> None:
    """Half and double of it both lose: the size where doubling gains nothing lies a little below the best."""
    even = beyond_at_compute(LAW, 1e-12, 1e22)
    assert even is not None
    sizes = np.geomspace(1e7, 1e12, 20_001)
    best = sizes[np.argmin(loss(sizes, 1e22 / 6 / sizes))]
    assert even < best < 2 * even


def test_a_law_of_size_alone_says_nothing_of_compute() -> None:
    assert beyond_at_compute(OF_SIZE_ALONE, 0.02, 1e22) is None
    row = marginal(OF_SIZE_ALONE, [OF_SIZE_ALONE], np.array([1e8, 1e10]), np.array([1e11, 1e11]), margin=0.02, compute=None)
    assert row["params_at_margin"] > 0 and row["compute"] is None and row["params_at_margin_compute_high"] is None
    assert row["margin_compute_extrapolated"] is None


def test_a_law_without_gain_has_size_zero_and_one_without_end_none() -> None:
    flat = LAW | {"a": 0.0}
    assert beyond_at_data(flat, 0.02) < 1e-100
    forever = LAW | {"alpha": 1e-3, "a": 1e5}
    assert math.isfinite(beyond_at_data(forever, 0.02))
    row = marginal(flat, [], np.array([1e8, 1e10]), np.array([1e9, 1e11]), margin=0.02, compute=None)
    assert row["margin_extrapolated"]


def test_the_size_is_found_from_runs_with_an_interval_around_the_truth() -> None:
    losses = measured()
    (row,) = scaling([losses], {}, margin=0.05, compute=1e21).to_pylist()
    at_compute = beyond_at_compute(LAW, 0.05, 1e21)
    assert at_compute is not None
    assert row["params_at_margin_low"] < beyond_at_data(LAW, 0.05) < row["params_at_margin_high"]
    assert row["params_at_margin_compute_low"] < at_compute < row["params_at_margin_compute_high"]
    assert row["params_at_margin"] == pytest.approx(beyond_at_data(LAW, 0.05), rel=0.3)
    assert row["compute"] == 1e21


@pytest.mark.parametrize(("margin", "outside"), [(0.05, False), (0.02, True), (0.3, True)])
def test_a_doubling_that_no_two_runs_span_is_extrapolated(margin: float, outside: bool) -> None:
    """Sizes are 100M to 6.4B; doubling gains so much at 3.1B, 45B and 16M."""
    found = scaling([measured(0.0)], {}, margin=margin)
    assert found["margin_extrapolated"].to_pylist() == [outside]
    data, compute = gains(found)
    assert data["range"].startswith("extrapolated" if outside else "measured")
    assert (data["fixed"], compute["fixed"]) == ("data", "compute")


def test_compute_that_no_run_took_is_extrapolated() -> None:
    (row,) = scaling([measured(0.0)], {}, margin=0.02, compute=1e27).to_pylist()
    assert row["margin_compute_extrapolated"] is True


def test_the_verb_takes_margin_and_compute(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    rows = gains(laws(study.root, Filters(loss_dataset="heldout"), margin=0.01, compute=1e20))
    assert {(row["fixed"], row["margin"]) for row in rows} == {("data", 0.01)}  # four runs: laws of size alone
    with pytest.raises(UserError, match="Margin, tokens and compute are numbers above 0"):
        laws(study.root, Filters(), compute=-1.0)
