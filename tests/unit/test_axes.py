"""Which loss tells scores best, and thresholds moved from one loss to another: planted truths and published tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.axes import axis_named, compared_axes
from jobs.filters import Filters
from jobs.import_results import import_results
from jobs.translate import translate as translate_job
from losslens.analysis.axes import COLUMNS, Axis, axes, best_axes
from losslens.analysis.resampling import block_weights
from losslens.analysis.translation import law_between, translate
from losslens.errors import UserError
from losslens.results import Results
from losslens.results.tables import THRESHOLDS
from tests.simulated_runs import Family, simulate

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "published"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published tables are not beside this checkout")


def against(curve: pa.Table, dataset: str, loss: np.ndarray, unit: str = "nats/token") -> pa.Table:
    """The same scores against another loss."""
    for name, values in (("loss_dataset", [dataset] * len(curve)), ("loss_unit", [unit] * len(curve)), ("loss", loss)):
        curve = curve.set_column(curve.column_names.index(name), name, pa.array(values))
    return curve


def three_losses(seed: int = 0) -> pa.Table:
    """The loss that performance follows, the same in bits, and one that differs from run to run."""
    curve, _ = simulate(Family(shape="gradual, concave"), seed)
    loss, run = curve["loss"].to_numpy(), np.unique(curve["run_id"].to_pylist(), return_inverse=True)[1]
    other = loss + np.random.default_rng(seed).normal(0, 0.3, run.max() + 1)[run]
    return pa.concat_tables([curve, against(curve, "heldout", 1.4 * loss, "bits/byte"), against(curve, "elsewhere", other)])


def test_the_loss_that_performance_follows_is_found() -> None:
    found = axes(three_losses())
    assert found.schema == COLUMNS
    rows = {(row["loss_dataset"], row["loss_unit"]): row for row in found.to_pylist()}
    assert set(rows) == {
        ("heldout", "nats/token"),
        ("heldout", "bits/byte"),
        ("elsewhere", "nats/token"),
        ("flops", "log"),
        ("tokens", "log"),
    }
    same = [rows["heldout", unit]["axis_error"] for unit in ("nats/token", "bits/byte")]
    assert same[0] == pytest.approx(same[1], rel=1e-3), "a change of unit changes nothing"
    for other in (("elsewhere", "nats/token"), ("tokens", "log"), ("flops", "log")):
        assert rows[other]["axis_error"] > 1.3 * same[0] and rows[other]["behind"] > 1
    ranked = best_axes(found).to_pylist()
    assert [row["loss_dataset"] for row in ranked] == ["heldout", "heldout", "elsewhere"], "compute is no loss"
    assert (ranked[0]["relative_error"], ranked[0]["best_for"], ranked[0]["scores"]) == (1.0, 1, 1)


def test_axes_are_compared_on_the_checkpoints_that_have_them_all() -> None:
    curve = three_losses()
    some = curve.filter(pa.array([dataset != "elsewhere" or k % 20 > 0 for k, dataset in enumerate(curve["loss_dataset"].to_pylist())]))
    counts = {row["n_checkpoints"] for row in axes(some).to_pylist()}
    assert counts == {209}
    few = curve.filter(pa.array([dataset != "elsewhere" or k % 2 > 0 for k, dataset in enumerate(curve["loss_dataset"].to_pylist())]))
    rows = {row["loss_dataset"]: row for row in axes(few).to_pylist()}
    assert rows["elsewhere"]["axis_error"] is None
    assert rows["elsewhere"]["reason"] == "measured at 110 of 220 checkpoints"
    assert rows["heldout"]["n_checkpoints"] == 220


def test_what_cannot_be_compared_has_a_reason() -> None:
    two, _ = simulate(Family(sizes=2, seeds=1), 0)
    assert {row["reason"] for row in axes(two).to_pylist()} == {"2 runs: 3 are needed to leave one out"}
    curve, _ = simulate(Family(seeds=1), 0)
    without = curve.set_column(curve.column_names.index("flops"), "flops", pa.nulls(len(curve), pa.float64()))
    reasons = {row["loss_dataset"]: row["reason"] for row in axes(without).to_pylist()}
    assert reasons == {"heldout": None, "flops": "unknown for 110 of 110 checkpoints", "tokens": None}
    unanswered = curve.set_column(curve.column_names.index("value"), "value", pa.array([0.0] * len(curve)))
    assert {row["reason"] for row in axes(unanswered).to_pylist()} == {"all scores are equal"}
    assert best_axes(axes(two)).num_rows == axes(curve.slice(0, 0)).num_rows == 0


@pytest.mark.parametrize("text", ["heldout", ":bits/byte", "heldout:", ""])
def test_a_loss_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="does not name a data set and a unit"):
        axis_named(text)


def planted(seed: int, *, runs: int = 6, noise: float = 0.003) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    run = np.repeat(np.arange(runs), 40)
    source = np.concatenate([np.geomspace(4.0, 2.2 + 0.1 * number, 40) for number in range(runs)])
    target = 0.8 * (source - 1.5) ** 1.2 + 1.1
    return source, target + random.normal(0, noise, len(run)) + random.normal(0, noise, runs)[run], run


def test_a_planted_law_is_found_with_its_error() -> None:
    truth = 0.8 * 1.1**1.2 + 1.1
    misses, held = [], 0
    for seed in range(8):
        law = law_between(*planted(seed))
        low, high = np.quantile(law.drawn_at(np.full(200, 2.6)), [0.025, 0.975])
        misses.append(law.at(2.6) - truth)
        held += bool(low <= truth <= high)
        assert law.unseen_error is not None and 0.002 < law.error <= law.unseen_error < 0.01
    assert np.abs(misses).max() < 0.006
    assert held >= 6
    exact = law_between(*planted(0, noise=0.0))
    assert exact.parameters == pytest.approx([0.8, 1.5, 1.2, 1.1], rel=1e-3)


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(UserError, match="4 checkpoints have both losses"):
        law_between(np.arange(4.0), np.arange(4.0), np.zeros(4, dtype=np.int64))


def test_resamples_keep_the_number_of_checkpoints_of_the_drawn_runs() -> None:
    weights = block_weights(np.repeat([0, 1, 2], 20), count=100, seed=0)
    by_run = weights.reshape(100, 3, 20).sum(axis=2)
    assert set((by_run / 21).ravel()) <= {0.0, 1.0, 2.0, 3.0}, "7 blocks of 3 for each time a run is drawn"


def threshold(dataset: str, unit: str, eta: float, half: float, study: str = "s") -> dict[str, Any]:
    about = {"study": study, "task": "t", "format": "letter", "shots": 0, "metric": "acc", "verdict": "emergent"}
    return about | {"loss_dataset": dataset, "loss_unit": unit, "eta": eta, "eta_low": eta - half, "eta_high": eta + half}


def losses(seed: int, study: str, named: dict[tuple[str, str], Any]) -> list[dict[str, Any]]:
    """Rows of view `losses` for 6 runs; each named loss is a function of the source loss."""
    source, target, run = planted(seed, noise=0.0)
    rows = []
    for number, (one, _, of) in enumerate(zip(source, target, run, strict=True)):
        about = {"study": study, "run_id": f"{study}{of}", "checkpoint_id": f"{study}{number}", "tokens": number + 1}
        rows += [about | {"dataset": name, "unit": unit, "value": float(f(one))} for (name, unit), f in named.items()]
    return rows


def test_a_threshold_moves_with_its_interval_and_stands_beside_the_one_found_there() -> None:
    table = losses(0, "s", {("c4", "nats/token"): lambda x: x, ("pile", "nats/token"): lambda x: 0.8 * (x - 1.5) ** 1.2 + 1.1})
    found = [threshold("c4", "nats/token", 2.6, 0.05), threshold("pile", "nats/token", 2.0, 0.04)]
    (row,) = translate(pa.Table.from_pylist(found, schema=THRESHOLDS), pa.Table.from_pylist(table), Axis("pile", "nats/token")).to_pylist()
    moved = [0.8 * (eta - 1.5) ** 1.2 + 1.1 for eta in (2.6, 2.55, 2.65)]
    assert [row[name] for name in ("translated", "translated_low", "translated_high")] == pytest.approx(moved, abs=2e-3)
    assert (row["direct"], row["direct_low"], row["in_range"]) == (2.0, 1.96, True)
    assert row["law_error"] < 1e-3 and row["n_runs"] >= 3


def test_a_threshold_goes_to_another_tokenizer_by_way_of_bits_per_byte() -> None:
    ours = losses(0, "a", {("web", "nats/token"): lambda x: x, ("web", "bits/byte"): lambda x: x / 3.1})
    theirs = losses(1, "b", {("web", "nats/token"): lambda x: x * 1.3, ("web", "bits/byte"): lambda x: x / 3.1})
    found = pa.Table.from_pylist([threshold("web", "nats/token", 2.6, 0.05, "a")], schema=THRESHOLDS)
    (row,) = translate(found, pa.Table.from_pylist(ours + theirs), Axis("web", "nats/token"), "b").to_pylist()
    assert row["translated"] == pytest.approx(2.6 * 1.3, abs=5e-3)
    assert (row["to_study"], row["direct"]) == ("b", None)
    assert ", then " in row["law"]


def test_a_threshold_outside_what_was_measured_says_so() -> None:
    table = losses(0, "s", {("c4", "nats/token"): lambda x: x, ("pile", "nats/token"): lambda x: x - 0.5})
    found = pa.Table.from_pylist([threshold("c4", "nats/token", 9.0, 0.05)], schema=THRESHOLDS)
    (row,) = translate(found, pa.Table.from_pylist(table), Axis("pile", "nats/token")).to_pylist()
    assert not row["in_range"]
    gradual = pa.Table.from_pylist([threshold("c4", "nats/token", 2.0, 0.1) | {"verdict": "gradual"}], schema=THRESHOLDS)
    assert translate(gradual, pa.Table.from_pylist(table), Axis("pile", "nats/token")).num_rows == 0


def test_the_job_says_what_is_missing(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write("runs", [{"run_id": "r", "study": "s"}])
    with pytest.raises(UserError, match="There is no threshold to translate"):
        translate_job(tmp_path, "pile:nats/token")
    results.write("thresholds", [threshold("c4", "nats/token", 2.6, 0.05)])
    with pytest.raises(UserError, match="No checkpoint has the loss pile:nats/token"):
        translate_job(tmp_path, "pile:nats/token")


@needs_published
def test_the_losses_of_the_ladder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_results("olmo-ladder", PUBLISHED / "olmo-ladder", tmp_path)
    text = Filters(task="hellaswag_val,mmlu_test", format="text", metric="acc_norm", loss_dataset="c4_en,pile")
    rows = compared_axes(tmp_path, text).to_pylist()
    error = {(row["task"], row["loss_dataset"]): row["axis_error"] for row in rows}
    for task in ("hellaswag_val", "mmlu_test"):
        assert error[task, "c4_en"] < 0.7 * error[task, "flops"] < 0.7 * error[task, "tokens"]
    best = Filters(task="hellaswag_val", format="text", metric="acc_norm", loss_dataset="c4_en,pile,wikitext_103", loss_axis="best")
    points = best.points(Results(tmp_path))
    assert set(points["loss_dataset"].to_pylist()) == {"wikitext_103"}
    assert "best olmo-ladder  wikitext_103:nats/token: error 1.00 of the least" in capsys.readouterr().err
    with pytest.raises(UserError, match="No checkpoint has the loss c4_en:bits/byte"):
        Filters(task="hellaswag_val", loss_axis="c4_en:bits/byte").points(Results(tmp_path))
    # In the tables, 7B has a loss of 2.059 on Pile where it has 2.697 on C4 (mean of five checkpoints).
    Results(tmp_path).write("thresholds", [threshold("c4_en", "nats/token", 2.697, 0.005, "olmo-ladder")])
    (moved,) = translate_job(tmp_path, "pile:nats/token").to_pylist()
    assert moved["translated"] == pytest.approx(2.059, abs=0.004)
    assert moved["translated_low"] < 2.059 < moved["translated_high"]
    assert moved["unseen_error"] < 0.006
