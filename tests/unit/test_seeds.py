"""Seeds at equal loss: which runs differ in their seed only, what is said of them, and what is not said where there is too little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from jobs.filters import Filters
from jobs.seeds import seeds as verb
from losslens.analysis.curves import Key
from losslens.analysis.seeds import LEVELS, MIN_FOR_DIP, Spread, at_each_loss, most_divided, seeds, several_seeds, share_of, spreads
from losslens.analysis.simulated import curve_table
from losslens.errors import UserError
from losslens.results import Results
from tests.synthetic import TASKS, write_study

RUN: dict[str, Any] = {"size": "a", "params": 5, "tokens_planned": 100, "seed": 0, "study": "s"}
NOTHING: list[dict[str, Any]] = []


def runs_of(etas: list[float], **more: Any) -> list[dict[str, Any]]:
    return [RUN | {"run_id": f"r{number:02}", "seed": number} | more for number in range(len(etas))]


def curve_of(etas: list[float], *, items: int = 200, step: float = 0.1, top: float = 0.8, width: float = 0.1, **names: Any) -> pa.Table:
    """Runs whose losses fall from 3 to 1; each scores 0 down to its eta and `top` from `width` below it on, without noise."""
    losses = np.arange(3.0, 1.0 - step / 2, -step)
    rows = [
        {"run_id": f"r{number:02}", "step": k + 1, "loss": float(loss), "value": float(np.clip(top * (eta - loss) / width, 0, top))}
        for number, eta in enumerate(etas)
        for k, loss in enumerate(losses)
    ]
    return curve_table(rows, n=items, chance=0.0, **names)


def spread_of(etas: list[float], **options: Any) -> Spread:
    ((_, found),) = spreads(curve_of(etas, **options), runs_of(etas), NOTHING)
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{}, {"seed": 1}], [("r0", "r1")]),
        ([{}, {}], []),  # the same seed twice is one
        ([{}, {"seed": None}], []),
        ([{}, {"seed": 1, "size": "b"}], []),
        ([{}, {"seed": 1, "tokens_planned": 200}], []),
        ([{}, {"seed": 1, "variant": "x=1"}], []),
        ([{}, {"size": "b"}, {"seed": 2}], [("r0", "r2")]),
        ([{"params": 9, "size": "c"}, {"params": 9, "size": "c", "seed": 1}, {}, {"seed": 1}, {"seed": 1}], [("r2", "r3"), ("r0", "r1")]),
    ],
)
def test_runs_that_differ_in_their_seed_only(changes: list[dict[str, Any]], expected: list[tuple[str, ...]]) -> None:
    runs = [RUN | {"run_id": f"r{number}"} | change for number, change in enumerate(changes)]
    assert [alike.runs for alike in several_seeds(runs)] == expected


def test_scores_at_equal_loss_lie_on_the_line_between_checkpoints() -> None:
    found = spread_of([2.25, 1.85], step=0.2, top=1.0, width=0.2)
    assert found.level == pytest.approx(0.5)
    assert len(found.losses) == LEVELS and (np.diff(found.losses) < 0).all()
    assert found.passes.tolist() == pytest.approx([2.13, 1.73], abs=0.05)
    losses = np.arange(3.0, 0.9, -0.2)
    for values, eta in zip(found.value, (2.25, 1.85), strict=True):
        truth = np.clip((eta - losses) / 0.2, 0, 1)
        assert values == pytest.approx(np.interp(-found.losses, -losses, truth))


def test_losses_reach_from_the_interval_of_eta_to_as_far_behind() -> None:
    table, runs = curve_of([2.0, 2.0]), runs_of([2.0, 2.0])
    judged = Key("s", "t", "letter", 0, "acc", "heldout", "nats/token")._asdict() | {"eta": 2.2, "eta_high": 2.4}
    ((_, found),) = spreads(table, runs, [judged | {"verdict": "emergent"}])
    middle = float(np.median(found.passes))
    assert found.losses[0] == pytest.approx(2.4)
    assert found.losses[-1] == pytest.approx(2 * middle - 2.4)
    assert list(spreads(table, runs, [judged | {"verdict": "gradual"}])) == []


def test_half_of_the_seeds_have_it() -> None:
    etas = [2.4] * 6 + [1.6] * 6
    found = spread_of(etas)
    rows = at_each_loss(found, range(12))
    row = min(rows, key=lambda row: abs(row.loss - 2.0))
    assert (row.half.k, row.half.n, row.above.k) == (6, 12, 6)
    assert (row.lowest, row.highest, row.mean) == pytest.approx((0.0, 0.8, 0.4))
    assert row.excess_sd == pytest.approx(row.sd, abs=0.01) and row.sd > 0.4 and row.spread_p < 1e-6
    assert row.dip is not None and row.dip == pytest.approx(0.25) and row.dip_p is not None and row.dip_p < 0.001
    assert [row.half.k for row in rows] == sorted(row.half.k for row in rows)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 5), (5, 5), (9, 16)])
def test_the_interval_is_the_exact_one(k: int, n: int) -> None:
    """Clopper and Pearson: at either end, so many or more (or fewer) have a probability of 2.5 %."""
    share = share_of(k, n)
    assert (share.low == 0.0) if k == 0 else stats.binom.sf(k - 1, n, share.low) == pytest.approx(0.025)
    assert (share.high == 1.0) if k == n else stats.binom.cdf(k, n, share.high) == pytest.approx(0.025)


def test_the_noise_of_items_is_no_spread_of_seeds() -> None:
    """Scores of 12 seeds with one truth scatter as sampling 100 items does: little is beyond it."""
    random = np.random.default_rng(0)
    etas, p = [2.0] * 12, []
    for _ in range(40):
        table = curve_of(etas, items=100)
        right = random.binomial(100, table["value"].to_numpy()) / 100
        noisy = table.set_column(table.column_names.index("value"), "value", pa.array(right))
        noisy = noisy.set_column(noisy.column_names.index("stderr"), "stderr", pa.array(np.sqrt(right * (1 - right) / 100)))
        ((_, found),) = spreads(noisy, runs_of(etas), NOTHING)
        last = at_each_loss(found, range(12))[-1]
        assert last.excess_sd < 0.035 < last.noise + 0.01
        p.append(last.spread_p)
    assert np.mean(np.asarray(p) < 0.05) <= 0.05, "what two checkpoints share is not known: all of the noise is thought to be shared"


@pytest.mark.parametrize("count", [2, MIN_FOR_DIP - 1, MIN_FOR_DIP])
def test_few_seeds_get_no_dip(count: int) -> None:
    row = at_each_loss(spread_of([1.6 + 0.07 * number for number in range(count)]), range(count))[LEVELS // 2]
    assert (row.dip_p is None) == (count < MIN_FOR_DIP)
    assert row.reason == (f"too few for a dip test: {count} seeds, {MIN_FOR_DIP} are needed" if count < MIN_FOR_DIP else None)


def test_less_is_better() -> None:
    """A Brier score of chance .75 that falls to .15 is a gain of .8."""
    table = curve_of([2.4, 2.4, 1.6], metric="brier")
    value = 0.75 * (1 - table["value"].to_numpy())
    columns = {"value": value, "chance": np.full(len(value), 0.75), "higher_is_better": np.full(len(value), False)}
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(column))
    ((_, found),) = spreads(table, runs_of([2.4] * 3), NOTHING)
    assert found.level == pytest.approx(0.75 * 0.6)
    upright = spread_of([2.4, 2.4, 1.6])
    assert (found.half == upright.half).all() and (found.above == upright.above).all()
    assert found.value == pytest.approx(0.75 * (1 - upright.value), nan_ok=True)


@pytest.mark.parametrize("etas", [[2.0], [2.0, 0.5], [0.5, 0.5, 0.5]], ids=["one seed", "one rises", "none rises"])
def test_nothing_is_said_where_fewer_than_two_rise(etas: list[float]) -> None:
    assert list(spreads(curve_of(etas), runs_of(etas), NOTHING)) == []
    assert seeds(curve_of(etas), pa.Table.from_pylist(runs_of(etas)), pa.table({})).num_rows == 0


def test_runs_of_one_checkpoint_and_scores_before_training_do_no_harm() -> None:
    table = curve_of([2.4, 2.2, 1.8])
    table = table.filter([row["run_id"] != "r02" or row["step"] == 3 for row in table.to_pylist()])
    ((_, found),) = spreads(table, runs_of([2.4] * 3), NOTHING)
    assert np.isnan(found.value[2]).all() and np.isnan(found.passes[2])
    assert {row.half.n for row in at_each_loss(found, range(3))} == {2}


def test_the_verb_names_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, seeds=3, tasks=(*TASKS[:1], *TASKS[-1:]))
    found = verb(tmp_path, Filters(loss_dataset="heldout", loss_axis="heldout:nats/token")).to_pylist()
    assert {(row["task"], row["metric"], row["n_seeds"]) for row in found} == {("skill_copy", "exact_match", 3)}
    assert {row["size"] for row in found} == {"d48", "d64", "d96", "d160"}
    for row in found:
        assert row["half_low"] <= row["half_share"] == row["half"] / row["n_seeds"] <= row["half_high"]
        assert row["lowest"] <= row["mean"] <= row["highest"]
        assert row["reason"] == f"too few for a dip test: 3 seeds, {MIN_FOR_DIP} are needed"
    said = capsys.readouterr().err
    assert "left out: 2 curves of bits_per_byte, which has no chance level" in said
    assert "left out: 1 curves called not_reached" in said


def test_one_seed_of_each_size_is_the_users_mistake(tmp_path: Path) -> None:
    write_study(tmp_path, tasks=TASKS[:1])
    with pytest.raises(UserError, match="differ in their seed only") as caught:
        verb(tmp_path)
    assert "--set seeds=10" in str(caught.value.remedy)
    assert Results(tmp_path).query("FROM runs").num_rows == 4


def test_seeds_are_most_divided_where_as_many_have_it_as_not() -> None:
    rows = at_each_loss(spread_of([2.4, 2.3, 1.7, 1.6]), range(4))
    divided = most_divided(rows)
    assert divided is not None and divided.half.k == 2
    assert all(row.loss <= divided.loss for row in rows if row.half.k == 2)
    assert most_divided([]) is None
