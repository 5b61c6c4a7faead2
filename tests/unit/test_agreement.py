"""For which metrics a threshold stays: the rule case by case, and the job on planted studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.filters import Filters
from jobs.metrics import for_eyes, metrics
from jobs.query import sql
from losslens.analysis.agreement import judged
from losslens.errors import UserError
from losslens.results import Results
from tests.synthetic import write_study


def said(metric: str, verdict: str, eta: float | None = None, half: float = 0.05) -> dict[str, Any]:
    interval = {"eta": eta, "eta_low": None if eta is None else eta - half, "eta_high": None if eta is None else eta + half}
    return {"metric": metric, "verdict": verdict} | interval


@pytest.mark.parametrize(
    ("rows", "stays", "reason"),
    [
        ([said("acc", "emergent", 2.2), said("brier", "emergent", 2.25)], "yes", "2.2 to 2.25 lies in all intervals"),
        ([said("acc", "emergent", 2.2), said("brier", "emergent", 2.5)], "no", "brier has it above 2.45, acc below 2.25"),
        ([said("acc", "emergent", 2.2), said("brier", "gradual")], "no", "emergent under acc; gradual under brier"),
        ([said("acc", "emergent", 2.2), said("brier", "not_reached")], "no", "not_reached under brier"),
        ([said("acc", "gradual"), said("brier", "gradual")], "none", "gradual under acc, brier"),
        ([said("acc", "emergent", 2.2), said("bits_per_byte", "gradual")], "unknown", "only acc has a verdict"),
        ([said("acc", "emergent", 2.2), said("brier", "too_few")], "unknown", "only acc has a verdict"),
        ([said("acc", "gradual")], "unknown", "fewer than two metrics have a verdict"),
    ],
)
def test_the_rule(rows: list[dict[str, Any]], stays: str, reason: str) -> None:
    found = judged(rows)
    assert found[0] == stays and reason in found[1]


def test_the_job_on_a_planted_study(tmp_path: Path) -> None:
    write_study(tmp_path, thresholds=False)
    rows = metrics(tmp_path, Filters(task="cloze_near,skill_copy", loss_axis="heldout:nats/token"))
    by_task = {row["task"]: row for row in rows}
    assert set(by_task) == {"cloze_near", "skill_copy"}
    choice = by_task["cloze_near"]
    assert choice["stays"] == "none" and choice["acc_norm_verdict"] == choice["brier_verdict"] == "gradual"
    assert choice["exact_match_verdict"] is None
    open_ = by_task["skill_copy"]
    assert open_["exact_match_verdict"] == "emergent" and open_["exact_match_eta"] == pytest.approx(1.86, abs=0.1)
    assert (open_["bits_per_byte_verdict"], open_["stays"]) == ("gradual", "unknown")
    shown, columns = for_eyes(rows)
    assert shown[rows.index(open_)]["exact_match"].startswith(f"{open_['exact_match_eta']:.3g} [")
    assert shown[rows.index(choice)]["exact_match"] == "-"
    assert list(columns)[-1] == "reason"
    assert sql(tmp_path, "SELECT count(*) AS n FROM thresholds").to_pylist() == [{"n": 7}], "stored as `thresholds` stores them"
    with pytest.raises(UserError, match="No scored checkpoint has task none"):
        metrics(tmp_path, Filters(task="none"))


def test_stored_options_give_metrics_that_were_not_scored(tmp_path: Path) -> None:
    """Exact match jumps at a loss of 2; the probability of the answer's tokens, from `samples` alone, grows all along."""
    results, items = Results(tmp_path), 40
    losses = np.linspace(3.0, 1.6, 36)
    results.write("runs", [{"run_id": run, "study": "s"} for run in ("a", "b")])
    places = [(f"c{n}", "ab"[n % 2], n, loss) for n, loss in enumerate(losses.tolist())]
    results.write("checkpoints", [{"checkpoint_id": name, "run_id": run, "step": n + 1} for name, run, n, _ in places])
    results.write("losses", [{"checkpoint_id": name, "dataset": "d", "unit": "nats/token", "value": loss} for name, _, _, loss in places])
    about = {"task": "sums", "task_version": 1, "format": "open", "shots": 0, "engine": "fake"}
    scores, samples = [], []
    for name, _, n, loss in places:
        right = round(items * min(max(2.0 - loss, 0.0) * 2, 0.9))
        value = right / items
        measured = {"metric": "exact_match", "value": value, "stderr": (value * (1 - value) / items) ** 0.5, "n": items}
        scores.append(about | measured | {"checkpoint_id": name, "chance": 0.0, "higher_is_better": True})
        for item in range(items):
            logprob = 3 * float(np.log(0.1 + 0.6 * (3.05 - loss) / 1.4)) + 0.02 * (item % 5 + n % 3)
            said = {"item_id": str(item), "option": 0, "is_gold": True, "logprob": logprob, "tokens": 3, "correct": item < right}
            samples.append(about | said | {"checkpoint_id": name})
    results.write("scores", scores)
    results.write("samples", samples)
    (row,) = metrics(tmp_path)
    assert (row["exact_match_verdict"], row["token_prob_verdict"]) == ("emergent", "gradual")
    assert row["exact_match_eta"] == pytest.approx(2.0, abs=0.1)
    assert (row["stays"], row["reason"]) == ("no", "emergent under exact_match; gradual under token_prob")
