"""Tuning: what a study may say about it, which run follows, what its rows are made of, and that it begins with the parent's weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from losslens.corpus.chunks import SkillChunk, plan_sources
from losslens.corpus.readers import documents
from losslens.corpus.shards import sha256
from losslens.corpus.sources import pieces
from losslens.corpus.tokenizer import existing, make
from losslens.errors import DataMismatch, UserError
from losslens.families import Origin, planned_runs
from losslens.families.tuned import Parent, tuned_run, tuned_study
from losslens.models.scoring import load_for_scoring
from losslens.specs import StudySpec, TokenizerSpec, load_study, to_yaml
from losslens.training import checkpoint as checkpoints
from losslens.training.checkpoint import Loss
from losslens.training.origins import losses_of_parent, prove, require_origin
from losslens.training.worker import make_trainer, resume, run_row
from tests.held_out import ENGLISH
from tests.tiny_models import SEQ_LEN, tiny_model

TUNING = "tuning={sources: [{generated: sort, name: sorting}], training: {tokens: 32k, global_batch: 8, optimizer: {lr: 1e-3}}}"
BYTES = TokenizerSpec(kind="byte", vocab_size=128)


def study(*settings: str) -> StudySpec:
    return load_study("demo", settings)


def parent(spec: StudySpec, **changes: object) -> Parent:
    run = planned_runs(spec)[0]
    origin = Origin(f"{run.run_id}/step-00000100", "somewhere", "a" * 64)
    return replace(Parent(origin, f"{run.label}-at102k", run.size, run.shape, BYTES, "b" * 64), **changes)  # type: ignore[arg-type]


# What a study says


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("tuning.sources=[]", "the tuning has no sources"),
        ("tuning.sources=[{generated: copy}]", "the source name 'copy' occurs twice"),
        ("tuning.sources=[{generated: sort, path: x, name: y}]", "exactly one of path, hf and generated"),
        ("tuning.keep=1", "keep"),
        ("tuning.training.tokens=null", "one largest amount"),
        ("tuning.training.tokens_per_param=2", "one largest amount"),
        ("tuning.training.tokens=1000", "less than one global batch"),
        ("tuning.training.branches=[{at: 10k, decay: 10k}]", "no branches"),
        ("tuning.training.optimiser={}", "unknown key 'optimiser' in tuning.training"),
        ("cluster.workers=[1, 9]", "9 workers cannot share a global batch of 8"),
    ],
)
def test_a_tuning_that_cannot_be_is_refused(setting: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("[", r"\[")):
        study("training.global_batch=16", TUNING, setting)


def test_no_pretraining_run_depends_on_the_tuning(tmp_path: Path) -> None:
    without, spec = study("tuning=null"), study(TUNING)
    assert without.tuning is None
    assert [run.run_id for run in planned_runs(spec)] == [run.run_id for run in planned_runs(without)]
    file = tmp_path / "study.yaml"
    file.write_text(to_yaml(spec), encoding="utf-8")
    assert load_study(str(file)) == spec


# What follows


def test_a_tuned_run_has_its_own_study_amounts_and_identity() -> None:
    spec = study(TUNING, "tuning.training.checkpoints={spacing: log, count: 3, first_step: 4}")
    of = parent(spec)
    run = tuned_run(spec, of)
    assert (run.study, run.size, run.origin, run.branch) == ("demo-tuned", "d48", of.origin, None)
    assert run.label == "d48-2M-s0-at102k-32k"
    assert (run.steps, run.tokens, run.checkpoints) == (31, 31 * 1024, (0, 4, 11, 31))
    assert run.peak_lr == 1e-3
    for other in (
        tuned_run(spec, parent(spec, origin=replace(of.origin, weights_sha256="c" * 64))),
        tuned_run(spec, parent(spec, tokenizer_sha256="c" * 64)),
        tuned_run(msgspec.structs.replace(spec, seed=1), of),
        tuned_run(study(TUNING, "tuning.keep=0.5"), of),
        tuned_run(study(TUNING, "tuning.training.optimizer.lr=2e-3"), of),
    ):
        assert other.run_id[-8:] != run.run_id[-8:]
    same = study(TUNING, "tuning.training.checkpoints={spacing: log, count: 3, first_step: 4}", "evaluation.limit=3")
    elsewhere = parent(same, origin=replace(of.origin, path="moved", losses=({"dataset": "heldout"},)))
    assert tuned_run(same, elsewhere).run_id == run.run_id


def test_the_mixture_keeps_a_share_of_the_corpus_in_its_proportions() -> None:
    spec = study(TUNING, "tuning.keep=0.25")
    mixed = tuned_study(spec, BYTES).corpus
    weights = {source.name or source.generated: source.weight for source in mixed.sources}
    assert weights["sorting"] == pytest.approx(0.75)
    assert weights["stdlib"] == pytest.approx(0.25 * 0.4)
    assert sum(weights.values()) == pytest.approx(1)
    assert [source.name for source in tuned_study(study(TUNING), BYTES).corpus.sources] == ["sorting"]
    assert tuned_study(spec, BYTES).training == spec.tuning.training  # type: ignore[union-attr]


def test_a_model_of_other_rows_and_what_cannot_be_sharded_are_refused() -> None:
    spec = study(TUNING)
    shape = parent(spec).shape
    with pytest.raises(UserError, match="sequences of 64 tokens, not 128") as failure:
        tuned_run(spec, parent(spec, shape=replace(shape, seq_len=64)))
    assert "corpus.seq_len=64" in failure.value.remedy
    assert tuned_run(spec, parent(spec, sharded=True)).sharded
    with pytest.raises(UserError, match="muon moves whole matrices"):
        tuned_run(study(TUNING, "tuning.training.optimizer.name=muon"), parent(spec, sharded=True))
    with pytest.raises(UserError, match="width 40 is no multiple of 16"):
        tuned_run(spec, parent(spec, sharded=True, shape=replace(shape, d_model=40)))


def test_the_row_of_a_tuned_run_names_its_parent_and_its_losses_follow() -> None:
    spec = study(TUNING)
    known = {"dataset": "heldout", "unit": "nats/token", "value": 2.5, "stderr": 0.1, "tokens": 9, "bytes": None}
    of = parent(spec)
    run = tuned_run(spec, replace(of, origin=replace(of.origin, losses=(known,))))
    row = run_row(tuned_study(spec, BYTES), run, "corpus")
    assert (row["study"], row["parent_checkpoint_id"], row["tokenizer"]) == ("demo-tuned", of.origin.checkpoint_id, "byte-128")
    assert losses_of_parent(run) == [Loss("parent/heldout", "nats/token", 2.5, 0.1, 9, None)]
    assert losses_of_parent(tuned_run(spec, of)) == []


# Rows


def test_tuning_reads_rows_of_skills_that_pretraining_has_not_seen_and_the_same_held_out_ones() -> None:
    corpus = study().corpus
    (copy,) = (plan for plan in plan_sources(corpus, 0, 10_000) if plan.name == "copy")
    (fresh,) = (plan for plan in plan_sources(corpus, 0, 10_000, {"copy": 7}) if plan.name == "copy")
    assert isinstance(copy.chunks[0], SkillChunk)
    assert list(copy.chunks[0].documents())[:5] != list(fresh.chunks[0].documents())[:5]
    assert copy.heldout == fresh.heldout
    assert copy.identity != fresh.identity


def texts(file: Path, text_column: str, where: dict[str, str] | None = None) -> list[str]:
    return [text for piece in pieces([file], 1 << 20) for text in documents(piece, text_column, where or {})]


def test_prompts_and_responses_are_joined_by_a_template(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1", "response": "2", "lang": "en"}, {"prompt": "x", "response": None, "lang": "en"}]
    rows += [{"prompt": "{a}", "response": "b", "lang": "de"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert texts(file, "Q: {prompt}\nA: {response}") == ["Q: 1 + 1\nA: 2", "Q: {a}\nA: b"]
    assert texts(file, "{{{prompt}}}", {"lang": "de"}) == ["{{a}}"]
    assert texts(file, "prompt") == ["1 + 1", "x", "{a}"]
    with pytest.raises(UserError, match="no column 'answer'"):
        texts(file, "{prompt}{answer}")
    for broken, sentence in (("{prompt", "cannot be read"), ("{{}}", "names no column"), ("{}", "more than"), ("{prompt!r}", "more than")):
        with pytest.raises(UserError, match=sentence):
            texts(file, broken)


def test_the_tokenizer_beside_a_model_is_known(tmp_path: Path) -> None:
    for size in (128, 257):
        make(TokenizerSpec(kind="byte", vocab_size=size), (), tmp_path / f"{size}")
        assert existing(tmp_path / f"{size}") == (TokenizerSpec(kind="byte", vocab_size=size), size)
    bpe = tmp_path / "bpe"
    make(TokenizerSpec(kind="bpe", vocab_size=280), [ENGLISH * 9], bpe)
    assert existing(bpe) == (TokenizerSpec(kind="path", path=str(bpe)), 280)
    with pytest.raises(UserError, match="holds no tokenizer"):
        existing(tmp_path)
    (bpe / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        existing(bpe)


# Weights


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_run_begins_with_the_weights_of_its_parent_once(tmp_path: Path, average: float) -> None:
    spec = study(TUNING, f"tuning.training.schedule.average={average}", "tuning.training.precision=float32")
    directory = tiny_model(tmp_path / "model", seed=3)
    model = load_for_scoring(directory)
    assert model.shape and model.shape.seq_len == SEQ_LEN
    weights = sha256(directory / "model.safetensors")
    origin = Origin("tiny", str(directory), weights)
    run = tuned_run(spec, parent(spec, origin=origin, shape=model.shape))
    tuned = tuned_study(spec, BYTES)
    trainer = make_trainer(tuned, run, torch.device("cpu"), 256)
    resume(trainer, tmp_path, run)
    expected = dict(model.module.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in trainer.model.named_parameters())
    assert len(trainer.average) == (len(expected) if average else 0)
    assert all(torch.equal(a, p) for a, p in zip(trainer.average, trainer.parameters, strict=bool(average)))

    require_origin(tmp_path, run)
    (directory / "model.safetensors").write_bytes(b"?")
    with pytest.raises(DataMismatch, match="are not those of the checkpoint tiny"):
        require_origin(tmp_path, run)
    checkpoints.write_state(tmp_path, run, 1, {"losses": torch.zeros(1)})
    require_origin(tmp_path, run)  # it goes on from a state of its own


def test_a_parent_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run/step-00000005 is no longer in"):
        prove(Origin("run/step-00000005", str(tmp_path / "nowhere"), "a"))
