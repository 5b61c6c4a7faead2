"""The same-curve analysis on planted families, on hand-made cases and on published checkpoints of other people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.filters import Filters
from jobs.import_results import import_results
from jobs.query import sql
from jobs.same_curve import same_curve as same_curve_of
from losslens.analysis import mixed, monotone, same_curve
from losslens.analysis.effect import Effect, Points, effect_of
from losslens.analysis.same_curve import contrasts, verdict_of
from losslens.errors import UserError
from losslens.results import Results
from losslens.results.tables import SAME_CURVE
from tests.simulated_runs import Family, simulate

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "published"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published tables are not beside this checkout")


def rows(family: Family, seed: int = 0, **options: Any) -> dict[str, dict[str, Any]]:
    """The row of each axis."""
    return {row["axis"]: row for row in same_curve(*simulate(family, seed), **options).to_pylist()}


@pytest.mark.parametrize("shape", ["onset, linear", "onset, jump", "gradual, concave"])
@pytest.mark.parametrize("effect", [0.0, 0.04])
def test_a_planted_effect_is_in_its_interval(shape: str, effect: float) -> None:
    family = Family(shape=shape, seeds=3, effect=effect, spread=0.005)
    found = [rows(family, seed)["loss"] for seed in range(8)]
    assert np.mean([row["effect_low"] <= 100 * effect <= row["effect_high"] for row in found]) >= 6 / 8
    assert abs(np.mean([row["effect"] for row in found]) - 100 * effect) < 0.5
    said = [row["verdict"] for row in found]
    assert said.count("different") <= 1 if effect == 0 else said.count("same") == 0 and said.count("different") >= 6


def test_runs_without_a_difference_are_the_same_and_say_how_closely() -> None:
    row = rows(Family(seeds=6))["loss"]
    assert row["verdict"] == "same" and row["reason"] is None
    assert -2 <= row["largest_low"] <= row["largest"] <= row["largest_high"] <= 2
    assert (row["margin"], row["property"], row["n_runs"]) == (2.0, "size", 30)
    assert (row["level"], row["reference"]) == ("3000M", "100M")
    strict = rows(Family(seeds=6), margin=0.2)["loss"]
    assert (strict["verdict"], strict["effect"]) == ("undecided", row["effect"])


def test_checkpoints_of_a_run_do_not_count_as_independent() -> None:
    """Ten times the checkpoints of the same runs tell little more about sizes; ten times the runs do."""
    width = {}
    for name, family in {
        "few": Family(seeds=2, spread=0.01),
        "points": Family(seeds=2, spread=0.01, checkpoints=220),
        "runs": Family(seeds=20, spread=0.01),
    }.items():
        row = rows(family)["loss"]
        width[name] = row["effect_high"] - row["effect_low"]
    assert width["points"] > 0.6 * width["few"]
    assert width["runs"] < 0.5 * width["few"]


def test_loss_foretells_what_depends_on_loss_better_than_compute_and_tokens() -> None:
    found = rows(Family(seeds=3))
    assert found["loss"]["explains_most"] and found["loss"]["behind"] is None
    for axis in ("flops", "tokens"):
        assert not found[axis]["explains_most"]
        assert found[axis]["axis_error"] > 1.4 * found["loss"]["axis_error"]
        assert found[axis]["behind"] > 1


def test_an_effect_that_grows_along_the_curve_is_found_where_it_is() -> None:
    row = rows(Family(shape="gradual, concave", seeds=4, effect=0.05, late=True))["loss"]
    assert row["verdict"] == "different"
    assert row["largest"] > row["effect"] + 1
    assert row["largest_at"] > -2.9


def test_architectures_are_compared_level_by_level_and_across_studies() -> None:
    curve, runs = simulate(Family(sizes=2, seeds=6, effect=0.05), 0)
    trained_by = dict(zip(runs["run_id"].to_pylist(), runs["optimizer"].to_pylist(), strict=True))
    studies = pa.array([f"with-{trained_by[run]}" for run in curve["run_id"].to_pylist()])
    apart = curve.set_column(curve.column_names.index("study"), "study", studies)
    (row,) = [row for row in same_curve(apart, runs, by="optimizer").to_pylist() if row["axis"] == "loss"]
    assert (row["level"], row["reference"], row["verdict"]) == ("muon", "adamw", "different")
    assert row["study"] == "with-adamw+with-muon"
    assert row["effect"] == pytest.approx(5, abs=1)
    (turned,) = [row for row in same_curve(apart, runs, by="optimizer", against="muon").to_pylist() if row["axis"] == "loss"]
    assert (turned["level"], turned["reference"]) == ("adamw", "muon")
    assert turned["effect"] == pytest.approx(-row["effect"], abs=0.2)
    assert {row["n_runs"] for row in same_curve(apart, runs).to_pylist()} == {6}, "by size each study by itself"


def test_where_too_little_is_known_it_says_why() -> None:
    curve, runs = simulate(Family(seeds=2), 0)
    one_size = same_curve(curve, runs.set_column(runs.column_names.index("params"), "params", pa.array([1] * len(runs)))).to_pylist()
    assert len(one_size) == 4 * 3, "the four other sizes by name, where parameters do not tell them apart"
    alone = same_curve(curve, runs, by="architecture").to_pylist()
    assert [row["reason"] for row in alone] == ["all runs have the same architecture, or none is known"] * 3
    without = curve.set_column(curve.column_names.index("flops"), "flops", pa.nulls(len(curve), pa.float64()))
    found = {row["axis"]: row for row in same_curve(without, runs).to_pylist()}
    assert found["flops"]["reason"] == "flops of 220 of 220 checkpoints are unknown"
    assert found["flops"]["verdict"] == "undecided" and found["loss"]["effect"] is not None
    unanswered = curve.set_column(curve.column_names.index("value"), "value", pa.array([0.0] * len(curve)))
    assert {row["reason"] for row in same_curve(unanswered, runs).to_pylist()} == {"all scores are equal"}
    untrained = curve.set_column(curve.column_names.index("tokens"), "tokens", pa.array([0] * len(curve)))
    assert {row["reason"] for row in same_curve(untrained, runs).to_pylist()} == {"no trained checkpoint"}
    assert rows(Family(sizes=2, seeds=1))["loss"]["reason"] == "2 runs in the common range: 3 tell a difference from chance"


def test_runs_that_were_never_at_equal_loss_are_not_compared() -> None:
    x = np.concatenate([np.linspace(0, 1, 20), np.linspace(2, 3, 20), np.linspace(2, 3, 20) + 0.01])
    run = np.repeat([0, 1, 2], 20)
    points = Points(x, x / 10, np.full(60, 1e4), run, (run > 0).astype(np.float64))
    assert effect_of(points).reason == "no two of them were measured in the same range"


@pytest.mark.parametrize(
    ("at", "half", "verdict"),
    [
        ([0.0, 0.5, -0.5], [1.0, 1.0, 1.0], "same"),
        ([0.0, 0.5, 1.5], [0.3, 0.3, 0.4], "same"),  # an effect, and too small to count
        ([0.0, 0.0, 3.0], [0.5, 0.5, 2.0], "different"),
        ([0.0, 0.0, -3.0], [0.5, 0.5, 2.0], "different"),
        ([0.0, 0.0, 3.0], [0.5, 0.5, 3.5], "undecided"),
        ([0.0, 0.0, 1.5], [0.5, 0.5, 1.0], "undecided"),  # an effect, beyond the margin or not
        ([0.0, 0.0, 0.0], [0.5, 0.5, 2.5], "undecided"),
    ],
)
def test_verdicts_are_what_the_document_says(at: list[float], half: list[float], verdict: str) -> None:
    centre, width = np.asarray(at), np.asarray(half)
    effect = Effect(0.0, -1.0, 1.0, np.arange(3.0), centre, centre - width, centre + width, 0.0)
    said, reason = verdict_of(effect, margin=2.0)
    assert said == verdict and (reason is None) == (verdict != "undecided")


def test_levels_are_set_against_the_one_that_most_runs_have() -> None:
    found = contrasts(["a", "b", "b", None, "c"], [None] * 5, "architecture")
    assert [(one.level, one.reference) for one in found] == [("a", "b"), ("c", "b")]
    np.testing.assert_array_equal(found[0].z, [1, 0, 0, np.nan, np.nan])
    (by_size,) = contrasts(["S", "M", "L"], [10, 100, 1000], "size")
    np.testing.assert_allclose(by_size.z, [0, 0.5, 1])
    (over_b,) = contrasts(["A", "B", "B"], [10, 100, 100], "architecture", "A")
    assert (over_b.level, over_b.reference) == ("B", "A")
    assert contrasts(["A", "B"], [10, 100], "architecture", "C") == []
    assert contrasts(["S", "S"], [10, 10], "size") == contrasts([None, None], [None, None], "seed") == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"by": "flavour"}, "by 'flavour'"),
        ({"margin": 0.0}, "margin of 0 points"),
        ({"by": "optimizer", "against": "lion"}, "No run has the optimizer 'lion'"),
        ({"against": "100M"}, "By size the largest is compared with the smallest"),
    ],
)
def test_bad_input_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        same_curve(*simulate(Family(), 0), **options)


def test_no_rows_give_no_rows() -> None:
    curve, runs = simulate(Family(checkpoints=2), 0)
    assert same_curve(curve.slice(0, 0), runs).schema == SAME_CURVE


def test_a_monotone_curve_follows_jumps_and_never_turns() -> None:
    random = np.random.default_rng(0)
    x = np.sort(random.uniform(0, 1, 400))
    value = np.where(x > 0.5, 0.8, 0.3) + random.normal(0, 0.01, 400)
    run = np.repeat(np.arange(4), 100)[random.permutation(400).argsort().argsort() // 1 % 400]
    order = np.argsort(run, kind="stable")
    weight = np.full(400, 1e4)
    rising = monotone.splines(x, value, weight)
    assert (np.diff(rising, axis=0) >= -1e-12).all() and rising.min() >= 0 and rising.max() <= 1 + 1e-12
    errors = monotone.unseen_errors(x[order], value[order], weight, run[order])
    assert np.sqrt(errors.mean()) < 0.02
    np.testing.assert_allclose(errors, monotone.unseen_errors(x[order], -value[order], weight, run[order]), rtol=1e-6)


def test_variances_of_runs_are_recovered() -> None:
    random = np.random.default_rng(1)
    runs, points, places = 200, 40, 4
    run = np.repeat(np.arange(runs), points)
    place = np.tile(np.linspace(0, places - 1, points), runs)
    spread = np.column_stack([np.interp(place, np.arange(places), row) for row in np.eye(places)])
    own = random.normal(0, 0.3, (runs, 1)) + random.normal(0, 0.2, (runs, places))
    z = random.uniform(0, 1, runs)[run]
    value = 1 + 2 * z + (spread * own[run]).sum(axis=1) + random.normal(0, 0.1, len(run))
    fit = mixed.fit(np.column_stack([np.ones(len(run)), z]), spread, value, np.ones(len(run)), run)
    assert fit.run_spread == pytest.approx(np.sqrt(0.3**2 + 0.2**2 / places), rel=0.1)
    assert fit.estimate[1] == pytest.approx(2, abs=4 * fit.covariance[1, 1] ** 0.5)
    expected = np.sqrt((0.3**2 + 0.2**2 / places) / runs) * np.sqrt(12)
    assert fit.covariance[1, 1] ** 0.5 == pytest.approx(expected, rel=0.2)


def test_the_job_stores_the_latest_comparison(tmp_path: Path) -> None:
    curve, runs = simulate(replace(Family(), checkpoints=10), 0)
    results = Results(tmp_path)
    results.write("runs", runs)
    names = [f"{row['run_id']}/{row['step']}" for row in curve.to_pylist()]
    points = [row | {"checkpoint_id": name} for name, row in zip(names, curve.to_pylist(), strict=True)]
    kept = ("checkpoint_id", "run_id", "step", "tokens", "flops")
    results.write("checkpoints", [{name: row[name] for name in kept} for row in points])
    losses = [{"checkpoint_id": row["checkpoint_id"], "dataset": "heldout", "unit": "nats/token", "value": row["loss"]} for row in points]
    results.write("losses", losses)
    scored = ("checkpoint_id", "task", "format", "shots", "metric", "value", "stderr", "n", "chance", "higher_is_better")
    results.write("scores", [{name: row[name] for name in scored} for row in points])
    for margin in (2.0, 3.0):
        same_curve_of(tmp_path, "size", margin)
    stored = sql(tmp_path, "SELECT axis, margin, effect FROM same_curve WHERE property = 'size' ORDER BY axis").to_pylist()
    assert [(row["axis"], row["margin"]) for row in stored] == [("flops", 3.0), ("loss", 3.0), ("tokens", 3.0)]
    direct = {row["axis"]: row["effect"] for row in same_curve(curve, runs).to_pylist()}
    assert {row["axis"]: row["effect"] for row in stored} == pytest.approx(direct)
    with pytest.raises(UserError, match="No scored checkpoint has task other"):
        same_curve_of(tmp_path, filters=Filters(task="other"))


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ladder")
    import_results("olmo-ladder", PUBLISHED / "olmo-ladder", root)
    return root


@needs_published
def test_mmlu_of_the_ladder_is_the_same_at_equal_loss_and_not_at_equal_compute(ladder: Path) -> None:
    filters = Filters(task="mmlu_test", format="text", metric="acc_norm", loss_dataset="c4_en")
    found = {row["axis"]: row for row in same_curve_of(ladder, filters=filters).to_pylist()}
    assert (found["loss"]["level"], found["loss"]["reference"], found["loss"]["n_runs"]) == ("13B", "190M", 34)
    assert {axis: row["verdict"] for axis, row in found.items()} == {"loss": "same", "flops": "different", "tokens": "different"}
    assert found["loss"]["axis_error"] < 0.6 * found["flops"]["axis_error"] < 0.6 * found["tokens"]["axis_error"]
    assert found["flops"]["behind"] > 2


@needs_published
def test_four_runs_of_7b_and_13b_do_not_decide_about_letters(ladder: Path) -> None:
    filters = Filters(task="mmlu_test", format="letter", loss_dataset="c4_en")
    row = same_curve_of(ladder, filters=filters).to_pylist()[0]
    assert (row["verdict"], row["n_runs"], row["level"]) == ("undecided", 4, "13B")
    assert row["largest_low"] < -2 < 2 < row["largest_high"]
