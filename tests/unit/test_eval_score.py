"""Rows of scores and samples from the fake engine; one process' scorer from choice to stored parts."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

from eval_service.backlog import Assignment
from eval_service.checkpoints import Checkpoint
from eval_service.fake import FakeEngine
from eval_service.questions import Asked, Questions
from eval_service.score import score_checkpoint
from eval_service.scorer import Scorer, already_scored
from losslens.errors import UserError
from losslens.results import Results
from losslens.results.tables import SAMPLES, SCORES
from losslens.tasks.requests import BuiltTask, Generate, Item, LogLikelihood

NOW = datetime(2026, 1, 1, tzinfo=UTC)
COPY = Asked("skill_copy", "open")
ITEMS = tuple(
    Item(
        str(i),
        tuple(LogLikelihood(f"question {i}:", f" {o}") for o in "ABCD"),
        gold=i % 4,
        option_bytes=(1,) * 4,
        option_chars=(1,) * 4,
        chance=0.25,
    )
    for i in range(6)
)
CHOICE = BuiltTask("quiz", "letter", 0, 3, ("acc", "brier"), ITEMS)
OPEN = BuiltTask(
    "sums",
    "open",
    2,
    1,
    ("exact_match", "bits_per_byte"),
    tuple(
        Item(
            str(i),
            (Generate(f"{i}+1=", ("\n",), 5), LogLikelihood(f"{i}+1=", f"{i + 1}")),
            answers=(f"{i + 1}",),
            option_bytes=(1,),
            option_chars=(1,),
        )
        for i in range(3)
    ),
)


def test_rows_of_both_tables(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.load(tmp_path)
    rows = score_checkpoint(engine, "run/step-1", [CHOICE, OPEN], NOW)
    assert rows.scores.schema == SCORES
    assert rows.samples.schema == SAMPLES
    scores = rows.scores.to_pylist()
    assert [(s["task"], s["metric"], s["n"], s["shots"], s["task_version"]) for s in scores] == [
        ("quiz", "acc", 6, 0, 3),
        ("quiz", "brier", 6, 0, 3),
        ("sums", "exact_match", 3, 2, 1),
        ("sums", "bits_per_byte", 3, 2, 1),
    ]
    assert {s["engine"] for s in scores} == {"fake"}
    assert all(s["scored_at"] == NOW and s["stderr"] is not None for s in scores)
    samples = rows.samples.to_pylist()
    assert len(samples) == 6 * 4 + 3
    assert all(math.isfinite(s["logprob"]) for s in samples)
    assert [s["is_gold"] for s in samples[:4]] == [True, False, False, False]


def test_checkpoints_differ_and_repeat(tmp_path: Path) -> None:
    engine = FakeEngine()
    made = []
    for name in ("one", "two", "one"):
        (tmp_path / name).mkdir(exist_ok=True)
        engine.load(tmp_path / name)
        made.append(score_checkpoint(engine, "c", [CHOICE], NOW).samples)
    assert made[0] == made[2] != made[1]


def test_a_scorer_stores_and_says_what_it_did(tmp_path: Path) -> None:
    scorer = Scorer(tmp_path / "results", Questions(("skill_copy", "next_char"), limit=5), "fake")
    (tmp_path / "weights").mkdir()
    assert already_scored(tmp_path / "results") == set()
    record = scorer.score(Assignment(Checkpoint("run/step-1", str(tmp_path / "weights")), (COPY,)))
    assert (record.error, record.engine, record.reason) == (None, "fake", "asked for")
    versions = scorer.versions()
    assert already_scored(tmp_path / "results") == {("run/step-1", COPY, versions[COPY])}
    assert already_scored(tmp_path / "results", "torch") == set()
    found = Results(tmp_path / "results").query("SELECT count(*) AS n FROM samples").to_pylist()
    assert found == [{"n": 5}]


def test_a_checkpoint_that_cannot_be_loaded_is_part_of_the_answer(tmp_path: Path) -> None:
    scorer = Scorer(tmp_path / "results", Questions(("skill_copy",), limit=5), "fake")
    record = scorer.score(Assignment(Checkpoint("run/step-1", str(tmp_path / "nowhere")), (COPY,)))
    assert isinstance(record.error, UserError)
    assert already_scored(tmp_path / "results") == set()


def test_unknown_tasks_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="skill_coppy") as refused:
        Questions(("skill_coppy",)).build()
    assert "skill_copy" in refused.value.remedy


def test_items_longer_than_the_model_are_counted(tmp_path: Path) -> None:
    engine = FakeEngine(max_len=12)  # tokens of a question and the first of its options
    engine.load(tmp_path)
    rows = score_checkpoint(engine, "run/step-1", [CHOICE, OPEN], NOW)
    assert rows.truncated == {}
    engine = FakeEngine(max_len=8)
    engine.load(tmp_path)
    assert score_checkpoint(engine, "run/step-1", [CHOICE, OPEN], NOW).truncated == {"quiz": 6}
