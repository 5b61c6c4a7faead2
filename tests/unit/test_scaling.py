"""Scaling laws: planted laws are found again, the sizes that follow from them are right, and nothing is said of too little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.filters import Filters
from jobs.scaling import laws
from losslens.analysis.laws import Law
from losslens.analysis.links import LINKS
from losslens.analysis.marginal import beyond_at_data
from losslens.analysis.scaling import Losses, Named, fitted, scaling
from losslens.analysis.scaling_laws import LOSS_LAWS, ONE_STAGES, SIZE
from losslens.errors import UserError
from tests.synthetic import write_study

A, ALPHA, B, BETA, E = 400.0, 0.34, 410.0, 0.28, 1.69  # of Hoffmann et al. 2022, about


def planted(noise: float = 0.0, tokens_per_parameter: tuple[float, ...] = (10, 20, 50, 100)) -> Losses:
    params = np.repeat([1e8, 2e8, 4e8, 8e8, 1.6e9], len(tokens_per_parameter))
    tokens = params * np.tile(tokens_per_parameter, 5)
    loss = A / params**ALPHA + B / tokens**BETA + E
    return Losses("s", "heldout", "nats/token", params, tokens, loss * np.exp(noise * np.random.default_rng(0).normal(size=len(loss))))


def test_a_planted_law_is_found_again() -> None:
    best = fitted(planted())
    assert best is not None
    c = best.constants
    assert [c["alpha"], c["beta"], c["floor"]] == pytest.approx([ALPHA, BETA, E], rel=0.02)
    ahead = best.loss(np.array([7e9]), np.array([2e12]))[0]
    assert ahead == pytest.approx(A / 7e9**ALPHA + B / 2e12**BETA + E, rel=2e-3)


def test_one_wild_run_does_not_move_the_law() -> None:
    losses = planted(noise=0.001)
    losses.loss[3] *= 1.2
    best = fitted(losses)
    assert best is not None
    assert best.loss(np.array([7e9]), np.array([2e12]))[0] == pytest.approx(A / 7e9**ALPHA + B / 2e12**BETA + E, rel=0.02)


def test_the_size_at_a_threshold_is_the_inverse_of_the_law() -> None:
    best = fitted(planted())
    assert best is not None
    size = best.params_at(2.3, 1e12)
    assert best.loss(np.array([size]), np.array([1e12]))[0] == pytest.approx(2.3, rel=1e-6)
    assert best.params_at(1.7, 1e9) == float("inf")  # the data alone keep it above


def test_beyond_the_margin_doubling_gains_less() -> None:
    best = fitted(planted())
    assert best is not None
    size, tokens = beyond_at_data(best.constants, 0.02), np.array([1e12])
    gain = best.loss(np.array([size]), tokens) - best.loss(np.array([2 * size]), tokens)
    assert gain[0] == pytest.approx(0.02, rel=1e-6)


def test_rows_have_intervals_around_their_values_and_repeat_exactly() -> None:
    losses = planted(noise=0.003)
    etas: dict[Named, list[tuple[str | None, float]]] = {("s", "heldout", "nats/token"): [("gsm8k", 2.3), (None, 1.0)]}
    rows = scaling([losses], etas).to_pylist()
    assert [row["task"] for row in rows] == ["gsm8k", None]
    truth = (A / (2.3 - E - B / losses.tokens.max() ** BETA)) ** (1 / ALPHA)
    assert rows[0]["params_at_eta_low"] <= truth <= rows[0]["params_at_eta_high"]
    assert rows[0]["params_at_margin_low"] <= rows[0]["params_at_margin"] <= rows[0]["params_at_margin_high"]
    assert rows[1]["params_at_eta"] is None  # no size has loss 1.0
    assert rows[0]["fit_error"] < 0.01 and rows[0]["held_out_error"] < 0.02
    assert scaling([losses], etas).to_pylist() == rows


def test_runs_that_read_equally_much_have_a_law_of_size_alone() -> None:
    losses = planted(tokens_per_parameter=(20,))
    same = Losses("s", "heldout", "bits/byte", losses.params, np.full(5, 1e10), 300 / losses.params**0.3 + 0.6)
    best = fitted(same)
    assert best is not None and best.fit.law is SIZE
    assert best.constants["alpha"] == pytest.approx(0.3, rel=0.03) and best.constants["b"] is None
    assert scaling([same], {}).to_pylist()[0]["law"] == "A/N^a + E"


def test_too_few_runs_have_no_law() -> None:
    losses = planted()
    few = Losses("s", "x", "nats/token", losses.params[:4], losses.tokens[:4], losses.loss[:4])
    assert fitted(few) is None
    assert scaling([few], {}).num_rows == 0


@pytest.mark.parametrize("law", [*LINKS, *LOSS_LAWS, *ONE_STAGES], ids=lambda law: law.name)
def test_every_law_is_found_from_its_own_values(law: Law) -> None:
    """What a law makes it also finds: predictions within and beyond the range agree, whatever the parameters."""
    random = np.random.default_rng(3)
    stage = law in (*LOSS_LAWS, *ONE_STAGES)
    x = random.uniform(-1.5, 1.5, (2, 40)) if stage else random.uniform(0.5, 2.0, (1, 40))
    starts = law.starts(x, np.full(40, 0.8) if stage else np.linspace(0, 1, 40))
    truth = starts[len(starts) // 2] + 0.05
    found = law.fit(x, law.value(truth, x))
    assert found is not None
    assert found.at(x) == pytest.approx(law.value(truth, x), abs=3e-3)


def test_values_that_cannot_be_compared_are_left_out() -> None:
    law = LOSS_LAWS[1]
    x = np.random.default_rng(0).normal(size=(2, 8))
    assert law.fit(x, np.array([1.0, 1.1, 1.2, 1.3, 1.4, np.nan, -1.0, 0.0])) is None


def test_the_verb_reads_a_study_and_its_thresholds(tmp_path: Path) -> None:
    """Four runs, one a size: a law of size alone, with a size for each threshold that is stored."""
    study = write_study(tmp_path)
    rows = laws(study.root, Filters(loss_dataset="heldout")).to_pylist()
    assert {(row["loss_dataset"], row["law"], row["n_sizes"], row["tokens"]) for row in rows} == {("heldout", "A/N^a + E", 4, None)}
    named = [row for row in rows if row["task"] is not None]
    assert named and all(row["eta"] is not None for row in named)
    (row,) = laws(study.root, Filters(loss_dataset="heldout"), eta=2.5).to_pylist()[:1]
    assert row["eta"] == 2.5 and row["task"] is None


@pytest.mark.parametrize(
    ("filters", "options", "sentence"),
    [
        (Filters(loss_dataset="nothing"), {}, "No loss of a run with known size"),
        (Filters(), {"margin": 0.0}, "Margin, tokens and compute are numbers above 0"),
        (Filters(), {"tokens": -1.0}, "Margin, tokens and compute are numbers above 0"),
    ],
)
def test_bad_input_is_one_sentence(filters: Filters, options: dict[str, float], sentence: str, tmp_path: Path) -> None:
    study = write_study(tmp_path)
    with pytest.raises(UserError, match=sentence):
        laws(study.root, filters, **options)
