"""Forecasts on ladders whose truth is known: right where a law holds, silent or wide where none does, blind to their targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.filters import Filters
from jobs.forecast import Asked, asked, forecast, summary
from losslens.analysis.choice import trials
from losslens.analysis.forecasts import Target, forecasts
from losslens.analysis.ladder import CHOICE, LOSS, Ladder, ladders
from losslens.analysis.links import SIGMOID
from losslens.analysis.methods import Fitter, Method, methods
from losslens.analysis.scaling_laws import TOKENS_AND_SIZE
from losslens.errors import UserError
from losslens.results import Results
from tests.synthetic import write_study

SIZES = {"s1": 1e8, "s2": 2e8, "s3": 4e8, "s4": 8e8, "s5": 3.2e9}
ITEMS = 4000


def score(loss: np.ndarray[Any, Any], middle: float = 2.9, steepness: float = 3.0) -> np.ndarray[Any, Any]:
    return 0.25 + 0.75 / (1 + np.exp(steepness * (loss - middle)))


def study(kind: str = "lawful", task: str = "t", *, checkpoints: int = 16, seed: int = 0, choice: bool = True) -> list[dict[str, Any]]:
    """Rows of view `curve`: five sizes, three budgets each, with loss, accuracy and probability of the right option."""
    random, rows = np.random.default_rng(seed), []
    for size, params in SIZES.items():
        for ratio in (10, 40, 160):
            tokens = params * ratio * np.arange(1, checkpoints + 1) / checkpoints
            loss = 400 / params**0.34 + 410 / tokens**0.28 + 1.69
            if kind == "lawful":
                right = score(loss)
            elif kind == "chance":
                right = np.full(checkpoints, 0.25)
            else:
                right = np.full(checkpoints, 0.5) + random.normal(scale=0.03, size=checkpoints)
            right = random.binomial(ITEMS, np.clip(right, 0, 1)) / ITEMS
            names = {"study": "toy", "run_id": f"{size}x{ratio}", "size": size, "params": int(params), "task": task, "format": "text"}
            for step in range(checkpoints):
                point = names | {"shots": 0, "loss_dataset": "heldout", "loss_unit": "nats/token", "loss": float(loss[step])}
                point |= {"checkpoint_id": f"{size}x{ratio}@{step}", "step": step + 1, "tokens": int(tokens[step])}
                point |= {"stderr": 0.01, "n": ITEMS, "chance": 0.25, "higher_is_better": True}
                rows.append(point | {"metric": "acc", "value": float(right[step])})
                if choice:
                    rows.append(point | {"metric": CHOICE, "value": float(0.25 + 0.6 * (score(loss[step]) - 0.25))})
    return rows


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def only(rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = forecasts(table(rows), metrics=["acc"], **options)[0].to_pylist()
    return found


def the_ladder(rows: list[dict[str, Any]]) -> Ladder:
    return next(found for found in ladders(table(rows)) if found.key.metric == "acc")


def test_the_largest_model_is_forecast_from_the_others() -> None:
    rows, choices = forecasts(table(study() + study(task="u", seed=1)), metrics=["acc"])
    found = rows.to_pylist()
    assert {row["target"] for row in found} == {"s5x10", "s5x40", "s5x160"} and len(found) == 6
    assert np.mean([abs(row["error_points"]) for row in found]) < 1.5
    assert all(row["predicted_low"] < row["predicted"] < row["predicted_high"] for row in found)
    assert all(row["forecastable"] and row["reason"] is None for row in found)
    assert all(abs(row["constant"] - row["actual"]) > abs(row["predicted"] - row["actual"]) for row in found if row["target"] == "s5x160")
    (choice,) = choices.values()
    assert choice.error is not None and choice.error < 0.02 and len(choice.kept) >= 2


def test_a_forecast_never_sees_its_target() -> None:
    """Scores and losses of the held-out size may be anything: choice and forecast stay the same."""
    rows = study() + study(task="u", seed=1)
    told = [{**row, "value": 0.3, "loss": 9.0} if row["size"] == "s5" else row for row in rows]
    before, after = only(rows), only(told)
    for name in ("predicted", "predicted_low", "predicted_high", "constant", "linear", "one_stage", "two_stage"):
        assert [row[name] for row in before] == pytest.approx([row[name] for row in after], abs=1e-6)
    assert [(row["method"], row["reason"]) for row in before] == [(row["method"], row["reason"]) for row in after]
    assert before[0]["actual"] != after[0]["actual"]


def test_the_same_rows_give_the_same_forecast_in_any_order() -> None:
    rows = study()
    shuffled = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    assert [row["predicted"] for row in only(rows)] == pytest.approx([row["predicted"] for row in only(shuffled)], abs=1e-6)


@pytest.mark.parametrize(("kind", "reason"), [("chance", "at chance"), ("noise", "noise")])
def test_what_cannot_be_forecast_says_why(kind: str, reason: str) -> None:
    assert {row["reason"] for row in only(study(kind))} == {reason}
    assert not any(row["forecastable"] for row in only(study(kind)))


def test_two_sizes_are_too_few_to_trust_and_still_forecast() -> None:
    rows = [row for row in study() if row["size"] in ("s1", "s2", "s3")]
    found = only(rows)
    assert {row["reason"] for row in found} == {"too few runs"}
    assert all(row["predicted"] is not None and row["target"].startswith("s3") for row in found)


def test_a_model_not_trained_yet_has_no_actual() -> None:
    (row,) = only(study(), target=Target(1e10, 1e12))
    truth = float(score(np.array([400 / 1e10**0.34 + 410 / 1e12**0.28 + 1.69]))[0])
    assert row["target"] == "N=1e+10 D=1e+12" and row["actual"] is None and row["error_points"] is None
    assert row["predicted"] == pytest.approx(truth, abs=0.03)
    assert row["predicted_low"] <= truth <= row["predicted_high"]


def test_sizes_and_runs_can_be_held_out_by_name() -> None:
    assert {row["target"] for row in only(study(), hold_out=["s4", "s5x10"])} == {"s4x10", "s4x40", "s4x160", "s5x10"}
    with pytest.raises(UserError, match="No size or run is called s6") as raised:
        only(study(), hold_out=["s6"])
    assert "s1, s2, s3, s4, s5" in raised.value.remedy
    with pytest.raises(UserError, match="No score has both runs to learn from"):
        only(study(), hold_out=list(SIZES))


def test_without_other_gauges_the_loss_alone_serves() -> None:
    found = the_ladder(study(choice=False))
    assert set(found.gauges) == {LOSS}
    assert all(method.gauge in (LOSS, None) for method in methods(found.gauges))
    assert {CHOICE, LOSS} == set(the_ladder(study()).gauges)


def test_a_run_stands_for_its_last_checkpoints_only() -> None:
    dense, sparse = the_ladder(study(checkpoints=80)), the_ladder(study(checkpoints=4))
    last = {row["run_id"]: row["value"] for row in study(checkpoints=4) if row["metric"] == "acc"}
    assert sparse.score(sparse.gain).tolist() == pytest.approx([last[run] for run in sparse.runs])
    rows = [row["value"] for row in study(checkpoints=80) if row["run_id"] == "s5x160" and row["metric"] == "acc"]
    assert dense.score(dense.gain)[dense.runs.index("s5x160")] == pytest.approx(np.mean(rows[-5:]))
    assert len(dense.on_gain) == 15 * 72  # the first tenth is not on the curve yet


def test_every_method_forecasts_a_lawful_ladder_and_prefixes_never_hold_what_they_forecast() -> None:
    found = the_ladder(study())
    for trial in trials(found):
        assert len(trial.actual) == len(found.runs) - len(trial.known.runs)
        assert trial.known.params.max() < found.params[-1]
    fitter, target = Fitter(found), np.array([[1e10], [1e12]])
    assert all(np.isfinite(fitter.gains(method, target)).all() for method in methods(found.gauges))
    assert methods([LOSS])[0] == Method(TOKENS_AND_SIZE, LOSS, SIGMOID)
    assert methods([LOSS])[0].name == "loss: A/N^a + B/D^b + E -> sigmoid"


def test_scores_of_which_less_is_better_keep_their_interval_in_order() -> None:
    rows = [
        {**row, "metric": "brier", "value": 0.75 * (1 - row["value"]), "chance": 0.75, "higher_is_better": False}
        for row in study(choice=False)
    ]
    found = forecasts(table(rows))[0].to_pylist()
    assert all(row["predicted_low"] < row["predicted"] < row["predicted_high"] for row in found)
    assert np.mean([abs(row["error_points"]) for row in found]) < 3


def test_the_verb_stores_what_view_forecasts_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write_study(tmp_path)
    found = forecast(made.root, Asked(), Filters(task="skill_copy", loss_dataset="heldout"))
    shown = Results(made.root).query("SELECT * FROM forecasts")
    assert shown.num_rows == found.num_rows > 0
    assert "mean absolute error in points: predicted" in "\n".join(summary(found))
    assert "forecast: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("largest", None, 7e9, None), "A model not trained yet has a size and tokens"),
        (("largest", None, 7e9, -1.0), "Size and tokens are numbers above 0"),
    ],
)
def test_half_a_target_is_refused(options: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        asked(*options)


def test_a_glob_that_names_no_run_is_refused(tmp_path: Path) -> None:
    made = write_study(tmp_path)
    with pytest.raises(UserError, match="No run is called zzz"):
        forecast(made.root, Asked(without=("zzz*",)), Filters(task="skill_copy", loss_dataset="heldout"))
