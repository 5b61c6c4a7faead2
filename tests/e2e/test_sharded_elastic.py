"""A run whose matrices are spread over its workers, resized 2 -> 1 -> 2 by nodes that come and go: the weights of an undisturbed one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from losslens.corpus.feed import direct
from losslens.corpus.packed import PackedCorpus
from losslens.specs import load_study
from losslens.training import journal
from losslens.training.checkpoint import saved_step, state_directory, states
from losslens.training.snapshot import state_of
from losslens.training.worker import make_trainer
from tests.bench.chaos import STUDY, Pretraining
from tests.nodes import Machines, machines, wait_for

pytestmark = pytest.mark.timeout(1800)

MANY = 8_000  # steps: no machine ends them while nodes come and go


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines(2, eval_slots=1) as running:
        yield running


@pytest.fixture
def training(cluster: Machines, tmp_path: Path) -> Iterator[Pretraining]:
    study = tmp_path / "study.yaml"
    study.write_text(STUDY.format(tokens=MANY * 8 * 128), encoding="utf-8")
    training = Pretraining(study, tmp_path / "results", cluster.address)
    training.start("--set", "cluster.sharded=true", "--set", "cluster.workers=[1, 2]", "--set", "cluster.recompute=true")
    yield training
    if training.process and training.process.poll() is None:
        training.kill()


def stepped_on(training: Pretraining, workers: int, after: float = 0.0) -> float:
    """When the run first stepped on so many workers after a moment."""

    def moment() -> float | None:
        found = [e["time"] for e in journal.events(training.home) if e["event"] == "stepping" and e["world_size"] == workers]
        return next((time for time in found if time > after), None)

    found: float = wait_for(moment, 600, f"a step on {workers} workers")
    return found


def undisturbed(training: Pretraining, steps: int) -> dict[str, torch.Tensor]:
    """The state of the run with whole matrices after so many steps in one process, without Ray."""
    spec, run = load_study(str(training.study)), training.run
    (manifest,) = (training.results / "corpus").glob("*/manifest.json")
    trainer = make_trainer(spec, run, torch.device("cpu"), PackedCorpus.open(manifest.parent).eos)
    for rows in direct(manifest.parent, run.seed, cursor=0, steps=steps, global_batch=run.global_batch, rank=0, world=1):
        trainer.update(torch.from_numpy(rows))
    return state_of(trainer)


def test_resized_from_2_to_1_to_2_the_weights_are_the_same_bits(cluster: Machines, training: Pretraining) -> None:
    first = stepped_on(training, 2)
    cluster.drain(cluster.nodes[-1], 30)
    second = stepped_on(training, 1, first)
    cluster.bury(cluster.nodes[-1])
    cluster.nodes.pop()
    cluster.join()
    third = stepped_on(training, 2, second)
    saved = saved_step(training.results, training.run.run_id)
    wait_for(lambda: saved_step(training.results, training.run.run_id) > saved, 120, "a state of the last group, saved because it was due")
    assert training.process
    moment = time.time()
    training.process.terminate()
    assert training.process.wait(120) == 128 + signal.SIGTERM
    last = training.since(moment, "saved")
    assert last, "told to end, it saves a state first"
    assert first < second < third
    events: list[dict[str, Any]] = journal.events(training.home)
    assert [e for e in events if e["event"] == "failed"] == [], "no group was lost: each saved and left"
    step, state = next(states(training.results, training.run.run_id))
    assert step >= last[-1]["step"] > saved
    assert (state_directory(training.results, training.run.run_id, step) / ".metadata").is_file()
    alone = undisturbed(training, step)
    assert state.keys() == alone.keys()
    assert [name for name in alone if not torch.equal(state[name], alone[name])] == []
