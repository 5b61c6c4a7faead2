"""Runs that begin with a checkpoint's weights: the first of their checkpoints is the parent, and what happens to them changes no bit.

Real processes for runs whose matrices are spread, gloo between them; rows are random and only the step decides them.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from jobs.finetune import finetune
from losslens.corpus import rank_slice
from losslens.errors import UserError
from losslens.families import Origin, PlannedRun, planned_runs
from losslens.families.tuned import Parent, tuned_run, tuned_study
from losslens.results import Results
from losslens.specs import StudySpec, TokenizerSpec, load_study
from losslens.training import checkpoint as checkpoints
from losslens.training import leaving
from losslens.training.worker import train
from tests.held_out import ENGLISH, byte_level, packed
from tests.ports import free_port
from tests.tiny_models import tiny_checkpoint, tiny_model

pytestmark = pytest.mark.timeout(300)

STEPS, BATCH, T = 20, 6, 32
SETTINGS = (
    f"corpus.seq_len={T}",
    f"family.sizes=[{{name: s, d_model: 32, d_ffn: 48, heads: 2, kv_heads: 1, layers: 2, tokens: {STEPS * BATCH * T}}}]",
    "corpus.tokenizer={kind: bpe, vocab_size: 320}",
    "training={global_batch: 6, precision: float32, checkpoints: {count: 2}}",
    "tuning.sources=[{generated: sort, name: sorting}]",
    f"tuning.training={{tokens: {STEPS * BATCH * T}, global_batch: {BATCH}, checkpoints: {{count: 2}}, micro_batch: 2}}",
    "tuning.training.precision=float32",
    "tuning.training.schedule={name: constant, warmup_steps: 0, average: 0.9}",
    "evaluation.cross_check=null",
)


class Stopped(Exception):
    """The run left after a step that the test chose."""


def study() -> StudySpec:
    return load_study("demo", SETTINGS)


def go(spec: StudySpec, run: PlannedRun, results: Path, corpus: Path, stop: int = STEPS, rank: int = 0, world: int = 1) -> None:
    """One rank of a run, which goes on from its newest state and leaves at a step."""

    def left(step: int) -> None:
        raise Stopped(step)

    def rows(_corpus: Path, _seed: int, *, cursor: int, steps: int, rank: int, world: int, unit: int, **_: int) -> Iterator[np.ndarray]:
        first, last = rank_slice(BATCH, rank, world, unit)
        for step in range(cursor // BATCH, cursor // BATCH + steps):
            if step == stop:
                leaving.ask(time.time())
            yield np.random.default_rng(step).integers(0, 300, (BATCH, T + 1))[first:last]

    try:
        train(spec, run, results, corpus, rows, rank=rank, world=world, left=left)
    except Stopped:
        leaving.cancel()


def tuning_of(directory: Path, *, sharded: bool = False) -> tuple[StudySpec, PlannedRun]:
    spec, found = study(), checkpoints.read(directory)
    losses = tuple(asdict(loss) for loss in found.losses)
    origin = Origin(found.checkpoint_id, str(directory), found.weights_sha256, losses)
    tokenizer = TokenizerSpec(kind="path", path=str(directory))
    parent = Parent(origin, "s", "s", planned_runs(spec)[0].shape, tokenizer, "b" * 64, sharded=sharded, recompute=sharded)
    return tuned_study(spec, tokenizer), tuned_run(spec, parent)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    return packed(folder / "packed", byte_level(folder / "tokenizer"), {"a": [ENGLISH * 30], "b": [ENGLISH.upper() * 20]}, seq_len=T).dir


@pytest.fixture(scope="module")
def parent(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a pretraining run."""
    results, spec = tmp_path_factory.mktemp("pretrained"), study()
    run = planned_runs(spec)[0]
    go(spec, run, results, corpus)
    return checkpoints.run_directory(results, run.run_id) / f"step-{STEPS:08d}"


@pytest.fixture(scope="module")
def undisturbed(parent: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("undisturbed")
    go(*tuning_of(parent), results, corpus)
    return results


def test_step_0_is_the_parent_and_every_step_knows_its_losses(parent: Path, undisturbed: Path) -> None:
    _, run = tuning_of(parent)
    found = checkpoints.completed(undisturbed, run.run_id)
    assert [checkpoint.step for checkpoint in found] == [0, STEPS // 2, STEPS]
    assert [checkpoint.tokens for checkpoint in found] == [0, STEPS // 2 * BATCH * T, STEPS * BATCH * T]
    before = checkpoints.read(parent)
    assert found[0].weights_sha256 == before.weights_sha256
    assert found[-1].weights_sha256 != before.weights_sha256
    measured = {(loss.dataset, loss.unit): loss.value for loss in before.losses}
    for checkpoint in found:
        of = {(loss.dataset, loss.unit): loss.value for loss in checkpoint.losses}
        assert {(f"parent/{dataset}", unit): value for (dataset, unit), value in measured.items()}.items() <= of.items()
    held_out = next(loss.value for loss in found[0].losses if loss.dataset == "heldout")
    assert held_out == pytest.approx(measured["heldout", "nats/token"], rel=1e-6)
    (row,) = Results(undisturbed).query("SELECT study, parent_checkpoint_id AS parent, tokens_planned FROM runs").to_pylist()
    assert row == {"study": "demo-tuned", "parent": before.checkpoint_id, "tokens_planned": STEPS * BATCH * T}


def weights(results: Path, run: PlannedRun) -> list[str]:
    return [checkpoint.weights_sha256 for checkpoint in checkpoints.completed(results, run.run_id)]


def test_a_run_that_left_twice_and_lost_its_parent_is_the_undisturbed_one(
    parent: Path, undisturbed: Path, corpus: Path, tmp_path: Path
) -> None:
    here = tmp_path / "parent"
    shutil.copytree(parent, here)
    spec, run = tuning_of(here)
    go(spec, run, tmp_path, corpus, 7)
    assert checkpoints.saved_step(tmp_path, run.run_id) in (7, 8, 9)
    shutil.rmtree(here)
    go(spec, run, tmp_path, corpus, 13)
    go(spec, run, tmp_path, corpus)
    assert weights(tmp_path, run) == weights(undisturbed, tuning_of(parent)[1])


def spread(rank: int, world: int, port: int, directory: Path, results: Path, corpus: Path, stop: int) -> None:
    """One rank of several that hold a part each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timedelta(seconds=100), world, rank)
    go(*tuning_of(directory, sharded=True), results, corpus, stop, rank, world)
    dist.destroy_process_group()


def together(*arguments: Any) -> None:
    context, port = multiprocessing.get_context("spawn"), free_port()
    ranks = [context.Process(target=spread, args=(rank, 2, port, *arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]


def test_spread_over_two_workers_it_is_the_same_run(parent: Path, undisturbed: Path, corpus: Path, tmp_path: Path) -> None:
    _, run = tuning_of(parent, sharded=True)
    assert run.run_id == tuning_of(parent)[1].run_id
    together(parent, tmp_path, corpus, 9)
    go(*tuning_of(parent, sharded=True), tmp_path, corpus)  # alone, from the state of both
    assert weights(tmp_path, run) == weights(undisturbed, run)


def test_what_cannot_be_tuned_is_refused_in_a_sentence(tmp_path: Path) -> None:
    def refusal(target: Path, *settings: str) -> str:
        with pytest.raises(UserError) as failure:
            finetune(load_study("demo", settings), [str(target)], tmp_path / "results")
        return str(failure.value)

    theirs = tiny_model(tmp_path / "theirs")
    assert "the study demo does not say how checkpoints are tuned" in refusal(theirs, "tuning=null")
    assert "is not a directory" in refusal(tmp_path / "nothing")
    assert "holds no trained checkpoint" in refusal(tmp_path)
    tiny_checkpoint(tmp_path / "others", "others-s-1k-s0-abc", 5)
    assert "others holds no trained checkpoint of this study" in refusal(tmp_path / "others")
    untrained = tiny_checkpoint(tmp_path / "fresh", "run", 0)
    assert "holds no trained checkpoint" in refusal(untrained.parent)
    assert "sequences of 64 tokens, not 128" in refusal(tiny_model(tmp_path / "short", seq_len=64))
    assert "of no shape that can be trained here" in refusal(tiny_model(tmp_path / "neox", "gpt_neox"))
    tokenizer = (theirs / "tokenizer.json").read_bytes()
    shutil.copyfile(byte_level(tmp_path / "more") / "tokenizer.json", theirs / "tokenizer.json")
    assert "and its model 257" in refusal(theirs)
    (theirs / "tokenizer.json").unlink()
    assert "holds no tokenizer.json" in refusal(theirs)
    (theirs / "tokenizer.json").write_bytes(tokenizer)
    (theirs / "model.safetensors").write_bytes(b"?")
    assert "cannot be read" in refusal(theirs)
