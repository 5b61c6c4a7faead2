"""Metrics computed anew in SQL from stored options: they are those of losslens.tasks.metrics, and absent where they cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval_service.score import score_checkpoint
from eval_service.torch_engine import TorchEngine
from losslens.results import Results
from losslens.tasks.builder import CHOICE_METRICS, OPEN_METRICS, choice_item, gold_item
from losslens.tasks.metrics import Sample, score_items
from losslens.tasks.records import Scored
from losslens.tasks.registry import build
from losslens.tasks.requests import BuiltTask, Format, Generate, GenerateResult, Item, LogLikelihoodResult, Result
from tests.tiny_models import SEQ_LEN, tiny_model

FORMATS: tuple[Format, ...] = ("letter", "text", "pair")


def made(format: Format, seed: int, items: int = 40) -> tuple[BuiltTask, list[list[Result]]]:
    """A task whose items have 2 to 5 options of several lengths, joined by a space or not, with ties."""
    random = np.random.default_rng([seed, len(format)])
    joints = [" ", ""]
    asked: list[Item] = []
    results: list[list[Result]] = []
    for number in range(items):
        k = int(random.integers(2, 6))
        texts = ["四é" * int(random.integers(1, 4)) + "x" * int(random.integers(1, 9)) for _ in range(k)]
        asked.append(choice_item(str(number), int(random.integers(k)), [Scored("Q:", text, joints[number % 2]) for text in texts]))
        logprobs = -random.integers(1, 9, k) / 2 if number % 3 == 0 else -random.exponential(200, k)
        results.append([LogLikelihoodResult(float(logprob), int(random.integers(1, 9)), False) for logprob in logprobs])
    return BuiltTask("made_up", format, 0, 1, CHOICE_METRICS[format], tuple(asked)), results


def store(root: Path, built: BuiltTask, results: Sequence[Sequence[Result]], *, scores: bool = True) -> None:
    found, samples = score_items(built, results)
    about: dict[str, Any] = {"checkpoint_id": "c", "task": built.task, "task_version": built.version, "format": built.format}
    about |= {"shots": built.shots, "engine": "fake"}
    Results(root).write("samples", [about | asdict(sample) for sample in samples])
    if scores:
        Results(root).write("scores", [about | asdict(score) for score in found])


def rescored(root: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["format"], row["metric"]): row for row in Results(root).query("FROM rescored").to_pylist()}


def test_every_metric_of_options_is_that_of_the_scorer(tmp_path: Path) -> None:
    for seed, format in enumerate(FORMATS):
        store(tmp_path, *made(format, seed))
    scored = Results(tmp_path).query("FROM scores").to_pylist()
    anew = rescored(tmp_path)
    assert set(anew) == {(row["format"], row["metric"]) for row in scored}
    for row in scored:
        own = anew[row["format"], row["metric"]]
        for name in ("value", "stderr", "chance"):
            assert own[name] == pytest.approx(row[name], abs=1e-9), (row["format"], row["metric"], name)
        assert (own["n"], own["higher_is_better"]) == (row["n"], row["higher_is_better"])


def test_what_a_real_engine_answered_is_scored_anew_alike(tmp_path: Path) -> None:
    tasks = [
        task for name in ("cloze_far", "skill_copy", "next_char") for task in build(name, data=None, limit=12, seed=0, seq_len=SEQ_LEN)
    ]
    engine = TorchEngine()
    try:
        engine.load(tiny_model(tmp_path / "model"))
        rows = score_checkpoint(engine, "c", tasks, datetime(2026, 1, 1, tzinfo=UTC))
    finally:
        engine.close()
    for name, table in (("scores", rows.scores), ("samples", rows.samples)):
        Results(tmp_path / "results").write(name, table)
    compared = Results(tmp_path / "results").query(
        "SELECT s.task, s.metric, s.value, s.stderr, r.value AS anew, r.stderr AS error_anew FROM scores AS s"
        " LEFT JOIN rescored AS r USING (checkpoint_id, task, task_version, format, shots, metric, engine)"
    )
    assert len(compared) == 5 + 2 + 2
    for row in compared.to_pylist():
        assert (row["anew"], row["error_anew"]) == (pytest.approx(row["value"], abs=1e-9), pytest.approx(row["stderr"], abs=1e-9)), row


def test_open_answers_have_exact_match_bits_per_byte_and_credit_for_tokens(tmp_path: Path) -> None:
    gold = [gold_item(str(number), Scored("Q:", text, " "), 0.0) for number, text in enumerate(["Paris", "北京", "New York"])]
    items = tuple(Item(**asdict(item) | {"requests": (Generate("Q:", ("\n",), 8), *item.requests)}) for item in gold)
    logprobs, tokens = [-0.3, -4.0, -9.0], [1, 2, 3]
    answers: list[list[Result]] = [
        [GenerateResult(text), LogLikelihoodResult(logprob, count, False)]
        for text, logprob, count in zip(["Paris", "上海", "York"], logprobs, tokens, strict=True)
    ]
    store(tmp_path, BuiltTask("capitals", "open", 0, 1, OPEN_METRICS, items), answers)
    anew, scored = rescored(tmp_path), Results(tmp_path).query("FROM scores").to_pylist()
    for row in scored:
        assert anew["open", row["metric"]]["value"] == pytest.approx(row["value"], abs=1e-9)
        assert anew["open", row["metric"]]["stderr"] == pytest.approx(row["stderr"], abs=1e-9)
    assert anew["open", "exact_match"]["chance"] is None
    credit = anew["open", "token_prob"]
    assert credit["value"] == pytest.approx(np.mean([math.exp(-0.3), math.exp(-2.0), math.exp(-3.0)]), abs=1e-12)
    assert credit["chance"] == 0


def test_what_an_item_lacks_leaves_the_metric_out(tmp_path: Path) -> None:
    about: dict[str, Any] = {"checkpoint_id": "c", "task": "t", "format": "text"}
    full = [Sample(str(item), j, j == 0, -1.0 - j, 1, 2, None, True, 3) for item in range(3) for j in range(2)]
    rows = [about | asdict(sample) for sample in full]
    for row in rows[-2:]:
        row["scored_bytes"] = None  # as stored before that column was
    Results(tmp_path).write("samples", rows)
    assert set(rescored(tmp_path)) == {("text", name) for name in ("acc", "acc_norm", "correct_choice_prob", "brier")}
    Results(tmp_path / "gold").write("samples", [row | {"is_gold": None} for row in rows])
    assert not rescored(tmp_path / "gold")
    Results(tmp_path / "generated").write("samples", [about | {"format": "open", "item_id": str(n), "correct": n == 0} for n in range(4)])
    assert {key: row["value"] for key, row in rescored(tmp_path / "generated").items()} == {("open", "exact_match"): 0.25}


def test_uniform_options_have_a_brier_score_of_three_quarters(tmp_path: Path) -> None:
    items = tuple(choice_item(str(number), 1, [Scored("Q:", text, " ") for text in "abcd"]) for number in range(2))
    uniform: list[list[Result]] = [[LogLikelihoodResult(-2.0, 1, False)] * 4] * 2
    store(tmp_path, BuiltTask("t", "letter", 0, 1, CHOICE_METRICS["letter"], items), uniform, scores=False)
    anew = rescored(tmp_path)
    assert (anew["letter", "brier"]["value"], anew["letter", "brier"]["chance"]) == (pytest.approx(0.75), 0.75)
    assert anew["letter", "acc"]["value"] == anew["letter", "correct_choice_prob"]["value"] == pytest.approx(0.25)


def test_the_curve_of_samples_has_only_what_scores_lack(tmp_path: Path) -> None:
    built, results = made("text", 0)
    store(tmp_path, built, results, scores=False)
    stored = Results(tmp_path)
    stored.write("losses", [{"checkpoint_id": "c", "dataset": "heldout", "unit": "nats/token", "value": 2.0}])
    metrics = "SELECT metric, loss, checkpoint_id FROM curve_of_samples ORDER BY metric"
    assert [row["metric"] for row in stored.query(metrics).to_pylist()] == sorted(CHOICE_METRICS["text"])
    one = score_items(built, results)[0][0]
    about = {"checkpoint_id": "c", "task": built.task, "task_version": 1, "format": "text", "shots": 0}
    stored.write("scores", [about | asdict(one)])
    assert one.metric not in [row["metric"] for row in stored.query(metrics).to_pylist()]
    assert len(stored.query(metrics)) == 4
