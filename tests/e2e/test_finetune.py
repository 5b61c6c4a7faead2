"""Tuning through the command that people type: from a study's results, and from a model of somebody else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from losslens.results import Results
from tests.conftest import Process
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.timeout(600)

STUDY = """
name: tiny
corpus:
  sources: [{generated: copy}, {generated: count}]
  tokenizer: {kind: byte, vocab_size: 128}
  seq_len: 128
  holdout: {rows: 4}
family: {rope_base: 100, sizes: [{name: s, d_model: 32, d_ffn: 96, heads: 2, kv_heads: 1, layers: 2, tokens: 100k}]}
training: {global_batch: 4, precision: float32, optimizer: {lr: 3e-3}, checkpoints: {count: 2}}
tuning:
  sources: [{path: %s, name: pairs, text_column: "Q {prompt}\\nA {response}"}]
  keep: 0.5
  training:
    tokens: 30k
    global_batch: 4
    precision: float32
    optimizer: {lr: 3e-3}
    schedule: {name: constant, warmup_steps: 2, average: 0.9}
    checkpoints: {spacing: log, count: 2, first_step: 8}
evaluation: {tasks: [skill_copy], engine: torch, limit: 20}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    rows = (json.dumps({"prompt": f"{n} + {n}", "response": str(2 * n)}) for n in range(2_000))
    (folder / "pairs.jsonl").write_text("\n".join(rows), encoding="utf-8")
    file = folder / "tiny.yaml"
    file.write_text(STUDY % (folder / "pairs.jsonl"), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def tuned(study: Path, tmp_path_factory: pytest.TempPathFactory, losslens: Callable[..., Process]) -> Path:
    """The study, pretrained, and both of its trained checkpoints tuned."""
    results = tmp_path_factory.mktemp("tuned") / "results"
    pretrained = losslens("pretrain", study, "--size", "s", "--results", results)
    assert pretrained.returncode == 0, pretrained.stderr
    ended = losslens("finetune", study, "--results", results, "--from", results, "--format", "json")
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)
    assert [(row["size"], row["tokens"], row["checkpoints"], row["scored"]) for row in rows] == [("s", 29_696, 3, 3)] * 2
    assert rows[0]["parent_loss"] > rows[1]["parent_loss"]
    return results


def test_every_amount_is_scored_beside_the_losses_of_its_parent(tuned: Path) -> None:
    rows = Results(tuned).query(
        "SELECT r.parent_checkpoint_id AS parent, c.step, c.weights_sha256 = p.weights_sha256 AS same, l.value = q.value AS known, "
        "count(DISTINCT s.metric) AS metrics FROM checkpoints c JOIN runs r USING (run_id) JOIN scores s USING (checkpoint_id) "
        "JOIN checkpoints p ON p.checkpoint_id = r.parent_checkpoint_id "
        "JOIN losses l ON l.checkpoint_id = c.checkpoint_id AND l.dataset = 'parent/heldout' AND l.unit = 'nats/token' "
        "JOIN losses q ON q.checkpoint_id = p.checkpoint_id AND q.dataset = 'heldout' AND q.unit = 'nats/token' "
        "WHERE r.study = 'tiny-tuned' GROUP BY ALL ORDER BY ALL"
    )
    found = [(row["step"], row["same"], row["known"], row["metrics"] > 0) for row in rows.to_pylist()]
    assert found == [(0, True, True, True), (8, False, True, True), (58, False, True, True)] * 2
    held_out = Results(tuned).query(
        "SELECT DISTINCT dataset FROM losses JOIN checkpoints USING (checkpoint_id) JOIN runs USING (run_id) "
        "WHERE study = 'tiny-tuned' AND dataset LIKE 'heldout/%' ORDER BY ALL"
    )
    assert held_out.column(0).to_pylist() == ["heldout/copy", "heldout/count", "heldout/pairs"]


def test_the_held_out_rows_of_the_corpus_are_those_of_pretraining(tuned: Path) -> None:
    rows = (
        Results(tuned)
        .query(
            "SELECT l.dataset, l.value, q.value AS before FROM runs r JOIN checkpoints c ON c.run_id = r.run_id AND c.step = 0 "
            "JOIN losses l ON l.checkpoint_id = c.checkpoint_id JOIN losses q ON q.checkpoint_id = r.parent_checkpoint_id "
            "AND q.dataset = l.dataset AND q.unit = l.unit WHERE r.study = 'tiny-tuned' AND l.dataset IN ('heldout/copy', 'heldout/count')"
        )
        .to_pylist()
    )
    assert len(rows) == 8
    assert all(row["value"] == pytest.approx(row["before"], rel=1e-6) for row in rows)


def test_tuning_again_is_a_no_op_and_asks_for_no_cluster(study: Path, tuned: Path, losslens: Callable[..., Process]) -> None:
    before = {file: file.stat().st_mtime_ns for file in (tuned / "parts").rglob("*.parquet")}
    ended = losslens("finetune", study, "--results", tuned, "--from", next(tuned.glob("checkpoints/tiny-s-*")), "--format", "json")
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads(ended.stdout)) == 2
    assert "all is tuned and scored" in ended.stderr
    assert {file: file.stat().st_mtime_ns for file in (tuned / "parts").rglob("*.parquet")} == before


def test_a_study_that_says_nothing_of_tuning_is_refused(study: Path, tuned: Path, losslens: Callable[..., Process]) -> None:
    ended = losslens("finetune", study, "--set", "tuning=null", "--results", tuned, "--from", tuned)
    assert ended.returncode == 2, ended.stderr
    assert "the study tiny does not say how checkpoints are tuned" in ended.stderr and "Traceback" not in ended.stderr


def test_too_few_checkpoints_say_so(tuned: Path, losslens: Callable[..., Process]) -> None:
    ended = losslens("tuning", "--results", tuned, "--metric", "exact_match", "--format", "json")
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)
    assert [(row["amount"], row["verdict"], row["eta"]) for row in rows] == [
        (0, "too_few", None), (4096, "too_few", None), (29_696, "too_few", None),
    ]  # fmt: skip
    forecast = losslens("tuning", "--results", tuned, "--about", "forecast")
    assert forecast.returncode == 0 and "too_few" in forecast.stdout


def test_a_model_of_somebody_else_is_tuned_with_its_own_tokenizer(study: Path, tmp_path: Path, losslens: Callable[..., Process]) -> None:
    model, results = tiny_model(tmp_path / "theirs", "llama"), tmp_path / "results"
    ended = losslens("finetune", study, "--results", results, "--from", model, "--format", "json")
    assert ended.returncode == 0, ended.stderr
    assert "no loss of" in ended.stderr
    (row,) = json.loads(ended.stdout)
    assert (row["size"], row["parent_loss"], row["scored"]) == ("theirs", None, 3)
    (run,) = Results(results).query("SELECT tokenizer, vocab_size, architecture FROM runs WHERE study = 'tiny-tuned'").to_pylist()
    assert run == {"tokenizer": "byte-257", "vocab_size": 257, "architecture": "llama"}
    refused = losslens("tuning", "--results", results)
    assert refused.returncode == 2 and "holds no tuned checkpoint whose parent's loss is known" in refused.stderr
