"""Verdicts and thresholds on planted curves, on hand-made cases and on published checkpoints of other people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from scipy import optimize

from jobs.analyse import correlations as correlations_of
from jobs.analyse import thresholds as thresholds_of
from jobs.filters import Filters
from jobs.query import sql
from losslens.analysis import correlations, onset, thresholds
from losslens.analysis.curves import MOST, running_mean, split, thinned
from losslens.analysis.interval import interval
from losslens.analysis.resampling import block_weights
from losslens.errors import UserError
from losslens.results import Results
from losslens.results.tables import THRESHOLDS
from tests.simulated_curves import ETA, SHAPES, curve_table, simulate

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "published"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published tables are not beside this checkout")


def verdicts(shape: str, count: int, **setting: Any) -> list[dict[str, Any]]:
    return [thresholds(simulate(shape, seed=seed, **setting), bootstrap=50).to_pylist()[0] for seed in range(count)]


@pytest.mark.parametrize("shape", [name for name in SHAPES if name.startswith("onset")])
def test_a_planted_threshold_is_found(shape: str) -> None:
    found = verdicts(shape, 12, spread=0.02, wobble=0.01)
    emergent = [row for row in found if row["verdict"] == "emergent"]
    assert len(emergent) >= 11
    assert np.median([abs(row["eta"] - ETA) for row in emergent]) < (0.15 if "very slow" in shape else 0.06)
    assert np.mean([row["eta_low"] <= ETA <= row["eta_high"] for row in emergent]) >= 0.75
    assert all(row["eta_low"] <= row["eta"] <= row["eta_high"] for row in emergent)


@pytest.mark.parametrize("shape", [name for name in SHAPES if name.startswith("gradual")])
@pytest.mark.parametrize("items", [50, 1000])
def test_a_gradual_curve_is_not_called_emergent(shape: str, items: int) -> None:
    found = [row["verdict"] for row in verdicts(shape, 20, items=items, spread=0.02)]
    assert found.count("emergent") <= 1
    assert found.count("gradual") >= 17


def test_noise_at_chance_is_never_a_threshold() -> None:
    found = [row["verdict"] for row in verdicts("flat", 40, items=100, wobble=0.02)]
    assert set(found) <= {"not_reached", "no_trend"}


def test_performance_that_falls_with_loss_is_inverse() -> None:
    assert {row["verdict"] for row in verdicts("inverse", 5)} == {"inverse"}


def curve(values: list[float], losses: list[float] | None = None, *, n: int = 500, chance: float = 0.25, **names: Any) -> pa.Table:
    losses = losses or np.linspace(3.0, 1.5, len(values)).tolist()
    rows = [{"run_id": "r", "step": k + 1, "loss": x, "value": y} for k, (x, y) in enumerate(zip(losses, values, strict=True))]
    return curve_table(rows, n=n, chance=chance, **names)


def only(table: pa.Table) -> dict[str, Any]:
    rows: list[dict[str, Any]] = thresholds(table, bootstrap=50).to_pylist()
    assert len(rows) == 1
    return rows[0]


def test_too_few_checkpoints_say_nothing() -> None:
    row = only(curve([0.25, 0.25, 0.25, 0.9, 0.9]))
    assert row["verdict"] == "too_few"
    assert row["eta"] is None and row["n_checkpoints"] == 5


def test_a_flat_level_away_from_chance_is_no_trend_and_zero_right_is_not_reached() -> None:
    assert only(curve([0.40] * 6 + [0.41] * 6))["verdict"] == "no_trend"
    row = only(curve([0.0] * 12, chance=0.0))
    assert (row["verdict"], row["spearman"], row["pearson"]) == ("not_reached", None, None)


def test_a_short_stretch_at_chance_is_not_absence() -> None:
    rising = np.linspace(0.25, 0.95, 20).tolist()
    assert only(curve([0.25, 0.25, *rising]))["verdict"] == "gradual"


def test_the_points_beside_a_threshold_are_those_of_the_table() -> None:
    losses = np.linspace(3.0, 1.5, 16).tolist()
    values = [0.25] * 10 + [0.7, 0.8, 0.85, 0.9, 0.9, 0.9]
    row = only(curve(values, losses))
    assert row["verdict"] == "emergent"
    assert (row["last_at_chance"], row["first_above"]) == (pytest.approx(losses[9]), pytest.approx(losses[10]))
    assert losses[10] <= row["eta"] <= losses[8]


def test_a_metric_of_which_less_is_better_gives_the_same_threshold() -> None:
    values = [0.25] * 10 + [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    accuracy = only(curve(values))
    mirrored = only(curve([1 - value for value in values], chance=0.75, metric="brier", higher_is_better=False))
    assert mirrored["verdict"] == "emergent"
    assert mirrored["eta"] == pytest.approx(accuracy["eta"])
    assert mirrored["spearman"] == pytest.approx(-accuracy["spearman"])


def test_bits_per_byte_has_no_chance_to_emerge_from() -> None:
    flat_then_falling = [7.9] * 10 + [6.0, 5.0, 4.0, 3.0, 2.5, 2.0]
    table = curve([value / 10 for value in flat_then_falling], chance=8.0, metric="bits_per_byte", higher_is_better=False)
    assert only(table)["verdict"] == "gradual"


def answered_alike(slope: float, seed: int) -> pa.Table:
    """Bits a byte of three runs, .18 apart from item to item, but only .02 from checkpoint to checkpoint."""
    rng = np.random.default_rng(seed)
    losses = np.linspace(6.0, 4.5, 10)
    rows = [
        {"run_id": run, "step": k + 1, "loss": loss, "value": 4.5 + slope * (loss - 4.5) + rng.normal(0, 0.02), "stderr": 0.18}
        for run in "abc"
        for k, loss in enumerate((losses - rng.uniform(0, 0.1)).tolist())
    ]
    return curve_table(rows, n=200, chance=8.0, metric="bits_per_byte", higher_is_better=False)


def test_items_that_are_hard_for_every_checkpoint_hide_no_trend() -> None:
    assert [only(answered_alike(0.2, seed))["verdict"] for seed in range(5)] == ["gradual"] * 5
    assert [only(answered_alike(-0.2, seed))["verdict"] for seed in range(5)] == ["inverse"] * 5
    flat = [only(answered_alike(0.0, seed))["verdict"] for seed in range(30)]
    assert flat.count("no_trend") >= 29


def test_an_untrained_checkpoint_does_not_make_a_stretch_at_chance() -> None:
    trained = np.linspace(0.3, 0.9, 20)
    rows = [{"run_id": "r", "step": k, "loss": 12.0 - k * 1e-3, "value": 0.25} for k in [0] * 8]
    rows += [{"run_id": "r", "step": k + 1, "loss": 3.0 - k * 0.05, "value": float(v)} for k, v in enumerate(trained)]
    assert only(curve_table(rows, n=500, chance=0.25))["verdict"] == "gradual"


def test_unknown_chance_noise_and_runs_do_not_stop_the_analysis() -> None:
    table = curve([0.25] * 10 + [0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    for name in ("stderr", "n", "step", "higher_is_better"):
        unknown = table.set_column(table.column_names.index(name), name, pa.nulls(len(table), table[name].type))
        assert only(unknown)["verdict"] == "emergent"
    without_chance = table.set_column(table.column_names.index("chance"), "chance", pa.nulls(len(table), pa.float64()))
    assert only(without_chance)["verdict"] == "gradual"
    without_run = table.set_column(table.column_names.index("run_id"), "run_id", pa.nulls(len(table), pa.string()))
    assert only(without_run)["n_runs"] == 1


def test_rows_without_loss_or_value_are_left_out_and_curves_are_kept_apart() -> None:
    first, second = curve([0.3] * 12), curve([0.3] * 12, study=None, shots=5)
    broken = first.slice(0, 2).set_column(first.column_names.index("value"), "value", pa.nulls(2, pa.float64()))
    found = thresholds(pa.concat_tables([second, broken, first], promote_options="permissive"), bootstrap=0).to_pylist()
    assert [(row["study"], row["shots"], row["n_checkpoints"]) for row in found] == [("s", 0, 12), (None, 5, 12)]


def test_no_rows_give_no_verdicts() -> None:
    empty = curve([0.3] * 12).slice(0, 0)
    assert thresholds(empty).schema == THRESHOLDS
    assert thresholds(empty).num_rows == correlations(empty).num_rows == 0


def test_the_order_of_rows_does_not_matter_and_the_seed_decides() -> None:
    table = simulate("onset, linear", seed=3)
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    same = [thresholds(rows, seed=1).drop_columns("computed_at") for rows in (table, shuffled)]
    numbers = ["verdict", "eta", "first_above", "spearman", "n_runs"]
    assert same[0].select(numbers).equals(same[1].select(numbers))
    assert thresholds(table, seed=1).drop_columns("computed_at").equals(same[0])


def test_resamples_keep_the_number_of_checkpoints_of_the_drawn_runs() -> None:
    run = np.repeat([0, 1, 2], [20, 20, 20])
    weights = block_weights(run, count=100, seed=0)
    assert weights.shape == (100, 60)
    by_run = weights.reshape(100, 3, 20).sum(axis=2)
    assert set((by_run / 21).ravel()) <= {0.0, 1.0, 2.0, 3.0}, "7 blocks of 3 for each time a run is drawn"
    assert (by_run.sum(axis=1) == 63).all()


def candidates(points: pa.Table) -> tuple[Any, onset.Fit]:
    ((_, curve),) = split(points)
    curve = curve.only(curve.trained)
    return curve, onset.fit(curve, 0.1)


def test_the_fit_is_that_of_nonnegative_least_squares() -> None:
    """The closed form for two coefficients that may not be negative and a bounded base, against scipy's solver."""
    curve, found = candidates(simulate("onset, jump", seed=1))
    random, rise = np.random.default_rng(0), onset.rises(found.eta, found.widths, curve.loss)
    solved = onset.solve(rise, found.eta, curve, curve.noise[:, None] ** -2.0, 0.01, 0.0)
    for place in random.choice(len(rise), 40, replace=False).tolist():
        eta = found.eta[place // (len(rise) // len(found.eta))]
        design = np.stack([np.ones(len(curve.loss)), curve.loss < eta, rise[place]], axis=1)
        wanted = optimize.lsq_linear(design / curve.noise[:, None], curve.gain / curve.noise, ([-np.inf, 0, 0], [0.01, np.inf, np.inf]))
        assert solved.squares[place, 0] == pytest.approx(2 * wanted.cost, rel=1e-6)


def test_both_parts_of_a_rise_are_paid_for() -> None:
    _, found = candidates(simulate("onset, step", seed=2, items=2000))
    best = int(found.solution.cost.argmin())
    assert found.solution.jump[best, 0] == pytest.approx(0.6, abs=0.02) and found.solution.rise[best, 0] == 0
    assert found.likelihood.sum() == pytest.approx(1) and found.quantile(0.025) < found.quantile(0.5) < found.quantile(0.975)
    assert (found.solution.base <= 0.1).all()


def test_runs_that_disagree_widen_the_interval_and_are_told_apart() -> None:
    def of(spread: float) -> list[Any]:
        rows = [candidates(simulate("onset, saturating", seed=seed, items=2000, spread=spread)) for seed in range(6)]
        return [interval(curve, found, 0.05, bootstrap=50, seed=0) for curve, found in rows]

    agree, differ = of(0.0), of(0.06)
    assert np.median([one.spread for one in agree]) < 0.01 < 0.03 < np.median([one.spread for one in differ]) < 0.1
    assert np.median([one.high - one.low for one in differ]) > 2 * np.median([one.high - one.low for one in agree])


def test_one_run_has_no_spread() -> None:
    curve, found = candidates(simulate("onset, jump", seed=0, runs=1))
    one = interval(curve, found, 0.05, bootstrap=50, seed=0)
    assert one.spread == 0 and one.low < one.eta < one.high


def test_a_large_curve_is_thinned_within_its_runs() -> None:
    ((_, curve),) = split(simulate("onset, linear", seed=0, runs=3, checkpoints=700))
    small = thinned(curve)
    assert MOST / 2 < len(small.loss) <= MOST + 3 and set(small.run) == set(curve.run)
    weights = [one.noise**-2.0 for one in (small, curve)]
    assert weights[0].sum() == pytest.approx(weights[1].sum())
    assert (weights[0] @ small.gain) == pytest.approx(weights[1] @ curve.gain)
    assert thinned(small) is small or len(small.loss) > MOST


def test_running_means_use_what_neighbours_there_are() -> None:
    assert running_mean(np.array([1.0, 2.0, 3.0, 10.0]), 1).tolist() == [1.5, 2.0, 5.0, 6.5]
    assert running_mean(np.array([1.0, 3.0]), 5).tolist() == [2.0, 2.0]


def test_few_ties_and_a_constant_stretch_are_no_trouble() -> None:
    same_loss = curve([0.25] * 60 + [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9], [3.0] * 60 + np.linspace(2.9, 2.0, 8).tolist())
    assert only(same_loss)["verdict"] in ("emergent", "gradual")


def test_progress_counts_curves() -> None:
    heard: list[tuple[int, int]] = []
    both = pa.concat_tables([curve([0.3] * 12), curve([0.3] * 12, task="u")])
    thresholds(both, bootstrap=0, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 2), (2, 2)]


def test_correlations_by_hand() -> None:
    table = curve([0.1, 0.2, 0.3, 0.5], [4.0, 3.0, 2.5, 2.0])
    (row,) = correlations(table).to_pylist()
    assert row["spearman"] == pytest.approx(-1.0)
    x, y = np.array([4.0, 3.0, 2.5, 2.0]) - 2.875, np.array([0.1, 0.2, 0.3, 0.5]) - 0.275
    assert row["pearson"] == pytest.approx((x @ y) / np.sqrt((x @ x) * (y @ y)))
    assert (row["n_checkpoints"], row["n_runs"]) == (4, 1)
    ties = curve([0.1, 0.1, 0.2, 0.2], [4.0, 3.0, 2.0, 1.0])
    assert correlations(ties).to_pylist()[0]["spearman"] == pytest.approx(-2 / np.sqrt(5))


def test_the_jobs_store_what_they_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results"):
        thresholds_of(tmp_path)
    results = Results(tmp_path)
    store(results, simulate("onset, linear", seed=0), task="copy")
    store(results, simulate("gradual, linear", seed=0), task="next_char")
    found = thresholds_of(tmp_path)
    stored = sql(tmp_path, "SELECT task, verdict, eta FROM thresholds ORDER BY task").to_pylist()
    assert stored == found.select(["task", "verdict", "eta"]).to_pylist()
    assert [row["verdict"] for row in stored] == ["emergent", "gradual"]
    assert thresholds_of(tmp_path, Filters(task="copy", format="letter", metric="acc,brier")).num_rows == 1
    assert sql(tmp_path, "FROM thresholds").num_rows == 2, "the latest verdict of each curve"
    assert correlations_of(tmp_path, Filters(task="next_char")).to_pylist()[0]["spearman"] < -0.9
    with pytest.raises(UserError, match="No scored checkpoint has task copi"):
        thresholds_of(tmp_path, Filters(task="copi"))
    assert (tmp_path / "results.duckdb").exists()


def store(results: Results, points: pa.Table, *, task: str) -> None:
    """Write rows of view `curve` as the tables they are joined from."""
    rows = points.to_pylist()
    names = [f"{task}/{row['run_id']}/{row['step']}" for row in rows]
    results.write("runs", [{"run_id": f"{task}/{run}", "study": "s"} for run in {row["run_id"] for row in rows}])
    pairs = list(zip(names, rows, strict=True))
    results.write("checkpoints", [{"checkpoint_id": n, "run_id": f"{task}/{r['run_id']}", "step": r["step"]} for n, r in pairs])
    results.write("losses", [{"checkpoint_id": n, "dataset": "heldout", "unit": "nats/token", "value": r["loss"]} for n, r in pairs])
    kept = ("format", "shots", "metric", "value", "stderr", "n", "chance", "higher_is_better")
    results.write("scores", [{"checkpoint_id": n, "task": task} | {name: r[name] for name in kept} for n, r in pairs])


MMLU_ITEMS = {"stem": 3153, "humanities": 4705, "social_sciences": 3077, "other": 3107}


def olmo_mmlu(form: str) -> pa.Table:
    """MMLU of OLMo 2 7B and 13B against C4 loss; `form` mc: letters, rc: full answers. Subjects weighted by their items."""
    rows = []
    for run in ("peteish7_eval_full", "peteish13_eval_full"):
        table = pacsv.read_csv(PUBLISHED / "olmo-ladder" / f"{run}.csv.gz")
        parts = [table[f"eval/downstream/mmlu_{name}_test_{form}_5shot_len_norm"].to_numpy() * n for name, n in MMLU_ITEMS.items()]
        accuracy = sum(parts) / sum(MMLU_ITEMS.values())
        losses = table["eval/c4_en-validation/CrossEntropyLoss"].to_numpy()
        points = zip(table["_step"].to_pylist(), losses.tolist(), accuracy.tolist(), strict=True)
        rows += [{"run_id": run, "step": step, "loss": loss, "value": value} for step, loss, value in points if value == value]
    return curve_table(rows, n=sum(MMLU_ITEMS.values()), chance=0.25)


@needs_published
def test_olmo_mmlu_emerges_with_letters_and_grows_with_full_answers() -> None:
    letter, text = only(olmo_mmlu("mc")), only(olmo_mmlu("rc"))
    assert letter["verdict"] == "emergent"
    assert 2.665 <= letter["eta"] <= 2.71, "between the brackets read off both runs by eye: 2.705-2.695 and 2.692-2.665"
    assert (letter["last_at_chance"], letter["first_above"]) == (pytest.approx(2.692, abs=2e-3), pytest.approx(2.695, abs=2e-3))
    assert text["verdict"] == "gradual"


def pythia(tasks: str, metric: str, items: int) -> pa.Table:
    """Pythia v0, zero-shot, mean over the tasks that match, against WikiText bits per byte."""
    table = pq.read_table(PUBLISHED / "pythia" / "pythia_evals_long.parquet")
    table = table.filter((pc.field("suite") == "pythia-v0") & (pc.field("shots") == 0))
    keys = ["model", "step"]
    wanted = table.filter(pc.match_like(table["task"], tasks)).filter(pc.field("metric") == metric)
    loss = table.filter((pc.field("task") == "wikitext") & (pc.field("metric") == "bits_per_byte"))
    means = [rows.group_by(keys).aggregate([("value", "mean")]) for rows in (wanted, loss)]
    joined = means[0].join(means[1].rename_columns([*keys, "loss"]), keys, join_type="inner").to_pylist()
    rows = [{"run_id": row["model"], "step": row["step"], "loss": row["loss"], "value": row["value_mean"]} for row in joined]
    return curve_table(rows, n=items, chance=0.25)


@needs_published
def test_pythia_logiqa_has_no_trend_and_mmlu_is_not_reached() -> None:
    logiqa, mmlu = only(pythia("logiqa", "acc", 651)), only(pythia("hendrycksTest-%", "acc", 14042))
    assert logiqa["verdict"] == "no_trend" and abs(logiqa["spearman"]) < 0.01
    assert mmlu["verdict"] == "not_reached" and mmlu["spearman"] == pytest.approx(-0.888, abs=2e-3)
    assert logiqa["n_checkpoints"] == mmlu["n_checkpoints"] == 150
    assert only(pythia("arc_easy", "acc", 2376))["verdict"] == "gradual"
