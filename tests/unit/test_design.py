"""The design helper: what it foretells is what direct simulation gives, more data foretells more, and cost is the family's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jobs.design import HOFFMANN, Grid, Law, design, grid_of, law_of, summary
from losslens.analysis import thresholds
from losslens.analysis.design import ENOUGH, Ability, Design, compared, tried
from losslens.analysis.simulated import Noise
from losslens.errors import UserError
from losslens.families import planned_runs
from losslens.specs import StudySpec, load_study
from tests.conftest import Process
from tests.simulated_curves import simulate
from tests.synthetic import write_study

PATHS = tuple(lowest + (4.0 - lowest) * (np.geomspace(0.025, 1, 22) ** -0.35 - 1) / (40**0.35 - 1) for lowest in (1.4, 1.5))
QUIET = Noise(spread=0.01, wobble=0.005)
ABILITY = Ability(2.2)
ONE = Grid((1,), (1.0,), (10,), (1,), (100,))
LOW = Law((8.0, 0.5, 500.0, 0.45, 0.9))  # with which every size of `demo` ends between 1.6 and 2.0


@pytest.fixture(scope="module")
def demo() -> StudySpec:
    return load_study("demo")


def made(items: int, paths: tuple[np.ndarray, ...] = PATHS, flops: float = 1.0) -> Design:
    return Design(("a",), 1.0, 22, len(paths), items, paths, 4.85, flops)


def test_the_half_width_is_that_of_curves_simulated_directly() -> None:
    """Other random numbers, made by the simulation that the estimator was calibrated on."""
    foretold = tried(made(1000), ABILITY, QUIET, curves=14)
    rows = [simulate("onset, linear", seed=100 + k, runs=2, items=1000, spread=0.01, wobble=0.005) for k in range(14)]
    found = [thresholds(row).to_pylist()[0] for row in rows]
    widths = [(row["eta_high"] - row["eta_low"]) / 2 for row in found if row["eta"] is not None]
    assert len(widths) >= 13 and np.isfinite(foretold.half_width).sum() >= 13
    assert np.median(foretold.half_width) == pytest.approx(np.median(widths), rel=0.35)
    assert foretold.held.mean() >= 0.8


def test_more_items_and_runs_place_eta_more_closely() -> None:
    few, many, more_runs = (tried(one, ABILITY, QUIET, curves=6) for one in (made(200), made(5000), made(5000, PATHS * 3)))
    assert np.median(many.half_width) < np.median(few.half_width)
    assert np.median(more_runs.half_width) < np.median(many.half_width)
    assert few.reached(0.01) <= many.reached(0.05) <= many.reached(0.5)


def test_a_curve_without_threshold_is_never_within() -> None:
    """The ability appears below every loss that the runs have."""
    outcome = tried(made(500), Ability(1.2), QUIET, curves=2)
    assert np.isinf(outcome.half_width).all() and not outcome.held.any()
    assert outcome.reached(100.0) == 0.0
    (row,) = compared([made(500)], Ability(1.2), QUIET, within=0.1, curves=2)
    assert (row["found"], row["half_width"], row["error"], row["coverage"], row["cheapest"]) == (0.0, None, None, None, False)


def test_the_cheapest_that_reaches_is_judged_again_on_fresh_curves() -> None:
    designs = [made(5000, flops=3.0), made(20, PATHS[:1], flops=1.0), made(5000, PATHS * 2, flops=2.0)]
    rows = compared(designs, ABILITY, QUIET, within=0.1, curves=3)
    assert [row["flops"] for row in rows] == [1.0, 2.0, 3.0]
    assert [row["cheapest"] for row in rows] == [False, True, False]
    assert [row["curves"] for row in rows] == [3, 6, 3] and rows[1]["reached"] >= ENOUGH
    (none,) = compared(designs[1:2], ABILITY, QUIET, within=0.001, curves=2)
    assert not none["cheapest"]
    assert compared(designs[1:2], ABILITY, QUIET, within=0.001, curves=2) == [none]


def test_abilities_are_the_same_for_every_design_and_vary_between_curves() -> None:
    unsure = Ability(2.2, unsure=0.3, rises=("linear", "jump"))
    exact = Noise(spread=0.0, wobble=0.0)
    first, again = (tried(made(items), unsure, exact, curves=4) for items in (4000, 8000))
    assert (first.error < 0.1).all() and (again.error < 0.1).all()
    assert first.half_width.tolist() != again.half_width.tolist()


def test_cost_is_that_of_the_familys_runs_and_of_scoring_them(demo: StudySpec) -> None:
    rows = design(demo, Grid((1, 4), (1.0,), (10,), (1, 2), (100,)), Ability(2.2), QUIET, LOW, within=0.1, item_tokens=50, curves=2, seed=0)
    runs = planned_runs(load_study("demo", ["training.checkpoints.count=10", "training.checkpoints.initial=false"]))
    all_sizes = sum(run.flops + run.shape.flops_per_token / 3 * len(run.checkpoints) * 100 * 50 for run in runs)
    by_kind = {(row["n_sizes"], row["seeds"]): row for row in rows}
    assert by_kind[4, 1]["flops"] == pytest.approx(all_sizes) and by_kind[4, 2]["flops"] == pytest.approx(2 * all_sizes)
    assert (by_kind[4, 2]["n_runs"], by_kind[1, 2]["n_runs"]) == (8, 2)
    assert by_kind[1, 1]["sizes"] == min(runs, key=lambda run: run.flops).size
    half = design(demo, Grid((4,), (0.5,), (10,), (1,), (1,)), Ability(2.7), QUIET, LOW, within=0.1, item_tokens=1, curves=2, seed=0)
    assert half[0]["flops"] == pytest.approx(sum(run.flops for run in runs) / 2, rel=0.01)


def test_losses_follow_the_law_and_never_exceed_an_even_guess(demo: StudySpec) -> None:
    run = planned_runs(demo)[0]
    path = LOW.path(run)
    assert len(path) == len([step for step in run.checkpoints if step])
    assert path[-1] == pytest.approx(8 / run.shape.params**0.5 + 500 / run.tokens**0.45 + 0.9)
    assert Law(HOFFMANN).path(run).max() == pytest.approx(math.log(128))


def test_the_law_is_fitted_to_the_checkpoints_of_a_study(demo: StudySpec, tmp_path: Path) -> None:
    study = write_study(tmp_path, name="demo")
    law = law_of(demo, None, study.root, "heldout")
    assert law.inner and "misfit" in law.told
    ends = [float(law.path(run)[-1]) for run in planned_runs(demo)]
    assert all(1.2 < end < 2.0 for end in ends)  # the planted losses there
    assert law_of(demo, "8,0.5,500,0.45,0.9", None, "heldout").constants == LOW.constants
    with pytest.raises(UserError, match="No loss of a run with known size"):
        law_of(demo, None, study.root, "nothing")


def test_the_answer_is_told_in_words() -> None:
    row = {"sizes": "a,b", "seeds": 2, "tokens_factor": 0.5, "checkpoints": 20, "items": 500, "within": 0.05}
    best = row | {"cheapest": True, "reached": 0.9, "curves": 24}
    assert list(summary([best], LOW))[1].startswith("cheapest within 0.05, in 90% of 24 fresh curves: a,b x 2 seeds")
    assert list(summary([row | {"cheapest": False}], LOW))[1].startswith("no design places eta within 0.05")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sizes": "5"}, "demo has 4 sizes, not 5"),
        ({"items": "10,x"}, "--items takes whole numbers above 0"),
        ({"tokens": "0.5,-1"}, "--tokens takes numbers above 0"),
        ({"seeds": "1.5"}, "--seeds takes whole numbers above 0"),
    ],
)
def test_a_wrong_grid_is_one_sentence(options: dict[str, str], sentence: str, demo: StudySpec) -> None:
    given = {"sizes": "1", "tokens": "1", "checkpoints": "10", "seeds": "1", "items": "100"} | options
    with pytest.raises(UserError, match=sentence):
        grid_of(demo, **given)


@pytest.mark.parametrize(
    ("ability", "noise", "within", "sentence"),
    [
        (Ability(2.2, rises=("steep",)), QUIET, 0.1, "There is no rise called 'steep'"),
        (Ability(-1.0), QUIET, 0.1, "are numbers above 0"),
        (ABILITY, QUIET, 0.0, "are numbers above 0"),
        (ABILITY, Noise(chance=1.0), 0.1, "--chance is below 1"),
        (ABILITY, Noise(spread=math.nan), 0.1, "are at least 0"),
        (Ability(1.0), QUIET, 0.1, "No size of demo would end below a loss of 1: the lowest run ends at"),
    ],
)
def test_a_wrong_question_is_one_sentence(ability: Ability, noise: Noise, within: float, sentence: str, demo: StudySpec) -> None:
    with pytest.raises(UserError, match=sentence):
        design(demo, ONE, ability, noise, LOW, within=within, item_tokens=50, curves=2, seed=0)


def test_what_cannot_be_designed_is_one_sentence(demo: StudySpec) -> None:
    wide = Grid((1,), (1.0,), (10,), tuple(range(1, 50)), tuple(range(1, 50)))
    with pytest.raises(UserError, match=r"The grid has 2,401 designs"):
        design(demo, wide, ABILITY, QUIET, LOW, within=0.1, item_tokens=50, curves=2, seed=0)
    with pytest.raises(UserError, match="is a study of variants"):
        design(load_study("architectures"), ONE, ABILITY, QUIET, LOW, within=0.1, item_tokens=50, curves=2, seed=0)
    with pytest.raises(UserError, match="A law has five numbers, not 2"):
        law_of(demo, "1,2", None, "heldout")


def test_the_verb_prints_rows_and_refuses_in_one_sentence(losslens: Callable[..., Process]) -> None:
    grid = ("--sizes", "1", "--tokens", "1", "--checkpoints", "20", "--seeds", "1", "--items", "500", "--curves", "2")
    law = ("--law", "8,0.5,500,0.45,0.9")
    printed = losslens("design", "demo", "--eta", "2.3", *grid, *law, "--format", "json")
    assert printed.returncode == 0
    (row,) = json.loads(printed.stdout)
    assert row["curves"] == 2 and row["n_runs"] == 1 and row["within"] == 0.05
    assert "loss by the given law: 8/N^0.5 + 500/D^0.45 + 0.9" in printed.stderr
    refused = losslens("design", "demo", "--eta", "1.0", *grid, *law)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.count("losslens: ") == 1 and "Traceback" not in refused.stderr
