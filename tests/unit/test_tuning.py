"""What tuning does to thresholds, on curves whose truth is planted: found, moved or not, forecast, refused where nothing can be said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.filters import Filters
from losslens.analysis import tuning
from losslens.analysis.emergence import POWERS, forecasts, limits, relative_likelihood
from losslens.errors import UserError
from losslens.results import Results
from tests.simulated_tuning import Tuning, simulate

AMOUNTS = (0, 16_000, 131_000)
CLEAR = Tuning(shape="jump", rise=0.8, items=1000, amounts=AMOUNTS)


def rows(design: Tuning, seed: int = 0) -> list[dict[str, object]]:
    found: list[dict[str, object]] = tuning.amounts(tuning.tuned(*simulate(design, seed))).to_pylist()
    return found


def test_eta_is_found_at_each_amount_and_moves_as_planted() -> None:
    found = rows(CLEAR)
    assert [row["amount"] for row in found] == list(AMOUNTS)
    assert {row["verdict"] for row in found} == {"emergent"}
    for row, tokens in zip(found, AMOUNTS, strict=True):
        assert row["eta"] == pytest.approx(CLEAR.at(tokens), abs=0.1)
        assert (row["n_parents"], row["n_runs"], row["study"], row["corpus"]) == (40, 4, "s-tuned", "c")
    assert (found[0]["shift"], found[0]["moved"]) == (None, None)
    last = found[-1]
    assert last["moved"] == "earlier"
    assert last["shift_low"] < CLEAR.at(131_000) - CLEAR.eta < last["shift_high"]  # type: ignore[operator]


def test_what_does_not_move_is_not_said_to_and_what_moves_back_is_later() -> None:
    still = [row["moved"] for seed in range(3) for row in rows(Tuning(shape="jump", rise=0.0, items=1000, amounts=AMOUNTS), seed)[1:]]
    assert still.count("undecided") >= 5
    assert rows(Tuning(shape="jump", eta=2.8, rise=-0.7, items=1000, amounts=AMOUNTS))[-1]["moved"] == "later"


def test_the_same_points_give_the_same_numbers_in_any_order() -> None:
    points, lineage = simulate(CLEAR, 1)
    shuffled = points.take(pa.array(np.random.default_rng(0).permutation(points.num_rows)))
    assert tuning.amounts(tuning.tuned(shuffled, lineage)) == tuning.amounts(tuning.tuned(points, lineage))


def test_runs_are_those_of_the_parents_and_untrained_parents_do_not_count() -> None:
    points, lineage = simulate(Tuning(runs=2, parents=8, amounts=(0,)), 0)
    (one,) = tuning.tuned(points, lineage)
    assert one.run.tolist() == [0] * 8 + [1] * 8
    untrained = [row | {"parent_tokens": 0 if row["parent_tokens"] == 1 else row["parent_tokens"]} for row in lineage.to_pylist()]
    (row,) = tuning.amounts(tuning.tuned(points, pa.Table.from_pylist(untrained))).to_pylist()
    assert (row["n_parents"], row["n_runs"]) == (14, 2)


def test_few_parents_and_several_tunings_are_told() -> None:
    points, lineage = simulate(Tuning(runs=1, parents=5, amounts=(0, 16_000)), 0)
    found = tuning.tuned(points, lineage)
    assert [(row["verdict"], row["eta"], row["moved"]) for row in tuning.amounts(found).to_pylist()] == [("too_few", None, None)] * 2
    (forecast,) = forecasts(found).to_pylist()
    assert (forecast["verdict"], forecast["predicted"], forecast["reason"]) == (
        "too_few",
        None,
        "0 amounts have an eta, and the law needs 3",
    )
    twice = [*lineage.to_pylist(), *(row | {"run_id": f"again-{row['run_id']}"} for row in lineage.to_pylist())]
    again = [*points.to_pylist(), *(row | {"run_id": f"again-{row['run_id']}"} for row in points.to_pylist())]
    with pytest.raises(UserError, match="tuned twice on the same data in different ways"):
        tuning.tuned(pa.Table.from_pylist(again), pa.Table.from_pylist(twice))
    other = pa.Table.from_pylist([row | {"corpus": "d"} if row["run_id"].startswith("again") else row for row in twice])
    assert [one.key.corpus for one in tuning.tuned(pa.Table.from_pylist(again), other)] == ["c", "d"]


def test_the_limit_of_the_law_is_exact_and_its_likeliest_power_the_planted_one() -> None:
    tokens, sd = np.asarray([4e3, 16e3, 64e3, 256e3, 1e6]), np.full(5, 0.01)
    for power in POWERS.tolist():
        eta = 2.0 + 0.5 * (tokens / 1e6) ** power
        origin, squares = limits(tokens, eta, sd, power)
        assert origin == pytest.approx(2.0) and squares == pytest.approx(0.0, abs=1e-9)
        assert POWERS[relative_likelihood(tokens, eta, sd).argmax()] == power
    falling = 2.0 - 0.5 * tokens / 1e6  # the untuned eta is not above those of tuned models
    assert limits(tokens, falling, sd, 1.0)[0] == pytest.approx(falling.mean())


def test_the_untuned_eta_is_forecast_from_parents_that_lack_the_ability() -> None:
    design = Tuning(shape="jump", items=1000, rise=0.8, parents=14, amounts=(0, 4_000, 16_000, 66_000, 262_000))
    found = tuning.tuned(*simulate(design, 0))
    (row,) = forecasts(found, above=2.3).to_pylist()
    assert (row["verdict"], row["above"], row["n_amounts"], row["reason"]) == ("forecast", 2.3, 4, None)
    assert row["predicted_low"] < design.eta < row["predicted_high"]
    assert row["error"] == pytest.approx(row["predicted"] - row["actual"])
    assert abs(row["error"]) < abs(row["constant"] - row["actual"])
    (seen,) = forecasts(found, above=1.9).to_pylist()
    assert (seen["verdict"], seen["reason"]) == ("too_few", "untuned it is emergent there: only weaker parents could tell")
    (by_itself,) = forecasts(found).to_pylist()
    assert by_itself["above"] == tuning.amounts(found).to_pylist()[0]["eta_high"]


def test_a_smaller_model_reaches_the_larger_one_where_it_does() -> None:
    found = tuning.tuned(*simulate(Tuning(shape="linear", runs=2, rise=0.8, items=1000, amounts=AMOUNTS, lowest=1.75), 1))
    (pair,) = tuning.sizes(found).to_pylist()
    assert (pair["small"], pair["large"], pair["verdict"], pair["amount"]) == ("1M", "2M", "reaches", 131_000)
    assert pair["at_loss"] > pair["target_loss"]
    assert pair["untuned_at_loss"] is None
    still = tuning.tuned(*simulate(Tuning(shape="linear", runs=2, rise=0.0, items=1000, amounts=AMOUNTS, lowest=1.75), 1))
    (pair,) = tuning.sizes(still).to_pylist()
    assert (pair["verdict"], pair["amount"], pair["at_loss"]) == ("below", 131_000, None)
    assert pair["score"] < pair["target"]


def test_only_who_asks_for_a_parents_loss_gets_points_on_it(tmp_path: Path) -> None:
    stored = Results(tmp_path)
    stored.write("runs", [{"run_id": "r", "study": "s-tuned", "size": "1M"}])
    stored.write("checkpoints", [{"checkpoint_id": "c", "run_id": "r", "step": 1, "tokens": 8}])
    of = {"checkpoint_id": "c", "unit": "nats/token", "value": 2.0}
    stored.write("losses", [of | {"dataset": dataset} for dataset in ("heldout", "parent/heldout")])
    score = {"task": "t", "format": "open", "shots": 0, "metric": "acc", "value": 0.5, "stderr": 0.1, "n": 9, "chance": 0.1}
    stored.write("scores", [score | {"checkpoint_id": "c", "higher_is_better": True}])
    parent = "parent/heldout"
    for asked, found in (
        (Filters(), "heldout"),
        (Filters(task="t"), "heldout"),
        (Filters(loss_dataset=parent), parent),
        (Filters(loss_axis=f"{parent}:nats/token"), parent),
    ):
        assert asked.points(stored)["loss_dataset"].to_pylist() == [found]
