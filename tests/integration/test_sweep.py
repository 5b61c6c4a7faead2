"""A sweep for real: Ray Tune over Ray Train on a tiny model. One trial cannot start, one diverges, poor ones are stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.proposals import Trial, parse_params, propose, size_of
from jobs.sweep import sweep
from losslens.results import Results
from losslens.specs import load_study

pytestmark = pytest.mark.timeout(600)

SETTINGS = [
    "family.sizes=[{name: s, d_model: 32, d_ffn: 96, heads: 2, kv_heads: 1, layers: 2, tokens: 60k}]",
    "corpus.sources=[{generated: copy}, {generated: sort}]",
    "training.precision=float32",
    "training.optimizer={name: adamw, lr: 3e-3}",
    "training.checkpoints={spacing: even, count: 6}",
    "evaluation.cross_check=null",
]
PARAM = "training.optimizer.lr=choice:1e-3,0.05,50"  # too low, good, absurd
SAMPLES = 6  # enough points that each value is met; equal ones are one trial


def once_more(results: Path) -> list[dict[str, Any]]:
    return sweep("demo", SETTINGS, results, ["s"], [PARAM], samples=SAMPLES)


def trials() -> dict[float, Trial]:
    spaces = parse_params([PARAM])
    found = propose("demo", SETTINGS, size_of(load_study("demo", SETTINGS), "s"), spaces, samples=SAMPLES, seed=0)
    return {trial.values()["training.optimizer.lr"]: trial for trial in found}


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def test_a_sweep_finds_the_rate_that_trains_and_run_again_does_only_what_failed(tmp_path: Path) -> None:
    planned = trials()
    low, good, absurd = sorted(planned)
    in_the_way = tmp_path / "checkpoints" / planned[low].run.run_id
    in_the_way.parent.mkdir()
    in_the_way.write_text("not a directory")

    first = once_more(tmp_path)
    by_rate = {row["training.optimizer.lr"]: row for row in first}
    assert by_rate.keys() == planned.keys()
    assert all(row["run_id"] == planned[rate].run.run_id for rate, row in by_rate.items())
    assert by_rate[good] | {"best": True, "state": "finished", "step": 58, "why": None} == by_rate[good] == first[0]
    assert by_rate[absurd]["state"] in ("diverged", "stopped")
    assert by_rate[low]["state"] == "failed" and "NotADirectoryError" in by_rate[low]["why"]

    in_the_way.unlink()
    ended = {row["run_id"]: row for row in first if row["state"] != "failed"}
    second = once_more(tmp_path)
    assert {row["run_id"]: row for row in second if row["run_id"] in ended} == ended  # reported to ASHA, not trained, again
    assert "failed" not in {row["state"] for row in second}

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.parquet")}
    before = descendants()
    assert once_more(tmp_path) == second
    assert descendants() <= before  # not even a cluster was started
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.parquet")} == files
    _tables_hold_every_trial(tmp_path, second)


def _tables_hold_every_trial(results: Path, found: list[dict[str, Any]]) -> None:
    answer = (
        Results(results)
        .query("""
        SELECT r.run_id, r.peak_lr, r.spec, max(c.tokens) AS tokens, arg_max(l.value, c.step) AS loss,
               (SELECT max(step) FROM train_log t WHERE t.run_id = r.run_id) AS logged,
               (SELECT max(attempt) FROM train_log t WHERE t.run_id = r.run_id) AS attempts
        FROM runs r JOIN checkpoints c USING (run_id) JOIN losses l USING (checkpoint_id)
        WHERE r.study = 'demo' AND l.dataset = 'heldout' AND l.unit = 'nats/token' GROUP BY ALL
    """)
        .to_pylist()
    )
    rows = {row["run_id"]: row for row in answer}
    assert rows.keys() == {row["run_id"] for row in found}
    for row in found:
        stored = rows[row["run_id"]]
        assert (stored["peak_lr"], stored["tokens"], stored["loss"]) == (row["training.optimizer.lr"], row["tokens"], row["loss"])
        assert f"training.optimizer.lr: {json.dumps(row['training.optimizer.lr'])}" in stored["spec"]
        assert stored["logged"] >= row["step"] and stored["attempts"] == 1
