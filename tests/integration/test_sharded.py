"""Training with matrices spread over ranks: the bits of whole ones at any world size and through any chain of them, and states that
any number of ranks go on from. Real processes, gloo between them.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from losslens.corpus.order import rank_slice
from losslens.errors import EnvironmentFailure
from losslens.families import Shape, planned_runs
from losslens.models import build, initialise
from losslens.specs import OptimizerSpec, ScheduleSpec, TrainingSpec, load_study
from losslens.training import checkpoint as checkpoints
from losslens.training import journal, leaving
from losslens.training.blocks import recompute_blocks
from losslens.training.loop import Trainer, run
from losslens.training.optimizers import Optimizers
from losslens.training.resizing import PassTooLarge
from losslens.training.sharded_state import read_rows, rows_of, write_rows
from losslens.training.sharding import Shards
from losslens.training.snapshot import load_state, state_of
from losslens.training.watch import Watch
from losslens.training.worker import PASSES, train
from tests.held_out import ENGLISH, byte_level, packed
from tests.ports import free_port

pytestmark = pytest.mark.timeout(600)

STEPS, BATCH, T = 24, 7, 32
CPU = torch.device("cpu")
SETTINGS = (
    f"corpus.seq_len={T}",
    "corpus.tokenizer={kind: bpe, vocab_size: 320}",
    f"family.sizes=[{{name: s, d_model: 32, d_ffn: 48, heads: 2, kv_heads: 1, layers: 2, tokens: {STEPS * BATCH * T}}}]",
    f"training.global_batch={BATCH}",
    "training.precision=float32",
    "training.micro_batch=2",  # of two ranks one has two micro-batches, of 2 and 2 sequences, the other 2 and 1
    "training.optimizer={name: adamw, lr: 3e-3}",
    "training.schedule={name: constant, warmup_steps: 0, average: 0.9}",
    "training.checkpoints={spacing: even, count: 3}",
    "evaluation.cross_check=null",
)
SHARDED = "cluster={sharded: true, recompute: true}"


def together(world: int, work: Callable[..., None], *arguments: object) -> None:
    """`work(rank, world, port, *arguments)` in so many processes at once."""
    spawn, port = multiprocessing.get_context("spawn"), free_port()
    ranks = [spawn.Process(target=work, args=(rank, world, port, *arguments)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * world


def meet(rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timedelta(seconds=100), world, rank)


# Trainers, without files of runs

SHAPE = Shape("paper", 61, 32, 96, 2, 1, 2, 24, 100.0, tie_embeddings=False)
EXACT: dict[str, dict[str, Any]] = {
    "adamw": {},
    "bf16": {"precision": "bf16"},
    "lion": {"optimizer": OptimizerSpec(name="lion", lr=0.02, weight_decay=0.05)},
    "sgd": {"optimizer": OptimizerSpec(name="sgd", lr=0.02, adam_lr=0.01)},
    "wild": {"optimizer": OptimizerSpec(name="adamw", lr=1e30, clip=None), "most_skipped": 99},
}
SHAPES = {
    "tied": replace(SHAPE, tie_embeddings=True),
    "gpt_neox": replace(SHAPE, architecture="gpt_neox", kv_heads=2),
    "mixtral": replace(SHAPE, architecture="mixtral", experts=4, active_experts=2),
    "mamba2": replace(SHAPE, architecture="mamba2", kv_heads=2, state_size=16),
}
ALL = (*EXACT, *SHAPES)
UPDATES = 6


def trainer(case: str, world: int = 1, micro_batch: int | None = 2) -> Trainer:
    """Of one case; several ranks have shards of it and compute blocks again."""
    settings: dict[str, Any] = {
        "precision": "float32",
        "optimizer": OptimizerSpec(lr=0.02, weight_decay=0.05),
        "schedule": ScheduleSpec(name="cosine", warmup_steps=2, average=0.9),
    }
    spec = TrainingSpec(global_batch=BATCH, **{**settings, **EXACT.get(case, {})})
    shape = SHAPES.get(case, SHAPE)
    hollow = world > 1 and shape.architecture == "paper"  # as a worker builds it: each rank draws its own rows
    model, shards = build(shape, seed=0, hollow=hollow), None
    if world > 1:
        recompute_blocks(model)
        largest = max(stop - start for start, stop in (rank_slice(BATCH, rank, world, micro_batch or 1) for rank in range(world)))
        shards = Shards(model, CPU, precision=spec.precision, exact=micro_batch is not None, largest=largest)
        if shards.hollow:
            initialise(shards.owned, shape, "fan_in", 0, shards.part)
    optimizers = Optimizers(shards.owned if shards else model, spec.optimizer, peak_lr=0.02, width=shape.d_model)
    return Trainer(model, optimizers, spec, UPDATES, BATCH, shape.seq_len, CPU, micro_batch, shards=shards)


def rows(rank: int, world: int, micro_batch: int | None = 2) -> Iterator[np.ndarray]:
    first, last = rank_slice(BATCH, rank, world, micro_batch or 1)
    return (np.random.default_rng(step).integers(0, 61, (BATCH, SHAPE.seq_len + 1))[first:last] for step in range(UPDATES))


def train_cases(rank: int, world: int, port: int, home: Path) -> None:
    """Every case on this rank; states go to `home`. Then what a rank does whose memory is short."""
    meet(rank, world, port)
    for case in (*ALL, "plain"):
        micro_batch = None if case == "plain" else 2
        of = trainer(case, world, micro_batch)
        run(of, rows(rank, world, micro_batch), Watch())
        assert of.shards
        placed, state = rows_of(of), state_of(of)
        write_rows(home / case, state, {name: placed(name, tensor.shape) for name, tensor in state.items()}, of.shards.host)
        again = trainer(case, world, micro_batch)
        assert again.shards
        load_state(again, UPDATES, read_rows(home / case, rows_of(again), rank, world, again.shards.host))
        back = state_of(again)
        assert [name for name in state if not torch.equal(state[name], back[name]) and not state[name].isnan().any()] == []
    refuse_too_large(of)
    dist.destroy_process_group()


def refuse_too_large(of: Trainer) -> None:
    """Without micro-batches the error says what to try next; with them, or with nothing smaller to try, what to change."""

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    assert of.shards
    share = torch.zeros(3, 9, dtype=torch.long)
    with pytest.raises(PassTooLarge) as found:
        of.shards.go(share, of.passes, full)
    assert found.value.fewer == -(-of.shards.largest // 2)
    of.passes.limit(1)
    with pytest.raises(EnvironmentFailure, match="does not hold one sequence"):
        of.shards.go(share, of.passes, full)


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """States of all cases, trained by two ranks."""
    home = tmp_path_factory.mktemp("spread")
    together(2, train_cases, home)
    return home


@pytest.mark.parametrize("case", ALL)
def test_rows_of_matrices_train_to_the_bits_of_whole_ones(case: str, spread: Path) -> None:
    whole = trainer(case)
    run(whole, rows(0, 1), Watch())
    expected, found = state_of(whole), read_rows(spread / case, lambda name, shape: None)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name].numpy().tobytes() != expected[name].numpy().tobytes()] == []
    skipped = int((~torch.isfinite(expected["losses"])).sum())
    assert (skipped > 0) == (case == "wild")


def test_without_micro_batches_only_rounding_differs(spread: Path) -> None:
    whole = trainer("plain", micro_batch=None)
    run(whole, rows(0, 1), Watch())
    found = read_rows(spread / "plain", lambda name, shape: None)
    for kind in ("losses", "grad_norms"):
        np.testing.assert_allclose(found[kind], state_of(whole)[kind], rtol=1e-4)


# Whole runs


class Stopped(Exception):
    """The run left after a step that the test chose."""


def feed(
    _corpus: Path, _seed: int, *, cursor: int, steps: int, global_batch: int, rank: int, world: int, unit: int, stop: int
) -> Iterator[np.ndarray]:
    """This rank's part of random rows that only the step decides; about step `stop` it is asked to leave."""
    first, last = rank_slice(global_batch, rank, world, unit)
    for step in range(cursor // global_batch, cursor // global_batch + steps):
        if step == stop:
            leaving.ask(time.time())
        yield np.random.default_rng(step).integers(0, 300, (global_batch, T + 1))[first:last]


def one_rank(settings: Sequence[str], results: Path, corpus: Path, stop: int, rank: int = 0, world: int = 1) -> None:
    """One rank of a run, which goes on from its newest state."""

    def left(step: int) -> None:
        raise Stopped(step)

    def stopping(*args: Any, **kwargs: Any) -> Iterator[np.ndarray]:
        return feed(*args, **kwargs, stop=stop)

    spec = load_study("demo", settings)
    try:
        train(spec, planned_runs(spec)[0], results, corpus, stopping, rank=rank, world=world, left=left)
    except Stopped:
        leaving.cancel()


def several(rank: int, world: int, port: int, settings: Sequence[str], results: Path, corpus: Path, stops: Sequence[int]) -> None:
    """One rank of several, which leaves at each step and begins again, the newest state being damaged meanwhile."""
    meet(rank, world, port)
    for attempt, stop in enumerate(stops):
        if attempt and rank == 0:
            damage_newest(results, settings)
        dist.barrier()
        one_rank(settings, results, corpus, stop, rank, world)
        dist.barrier()
    dist.destroy_process_group()


def damage_newest(results: Path, settings: Sequence[str]) -> None:
    """Take away what rank 1 wrote of the newest state."""
    run_id = planned_runs(load_study("demo", settings))[0].run_id
    newest, *others = checkpoints.state_directories(results, run_id)
    assert others
    next(newest.glob("__1_*")).unlink()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    return packed(folder / "packed", byte_level(folder / "tokenizer"), {"a": [ENGLISH * 30], "b": [ENGLISH.upper() * 20]}, seq_len=T).dir


def test_a_run_resized_and_robbed_of_a_state_is_the_undisturbed_one(corpus: Path, tmp_path: Path) -> None:
    """2 workers leave, and a file of their newest state is lost, so that they go on from the one before; then one goes on from their
    state, and 2 from that of whole matrices."""
    alone, resized, settings = tmp_path / "alone", tmp_path / "resized", (*SETTINGS, SHARDED)
    one_rank(SETTINGS, alone, corpus, STEPS)
    together(2, several, settings, resized, corpus, (11, 14))
    one_rank(settings, resized, corpus, 19)
    together(2, several, settings, resized, corpus, (STEPS,))
    run = planned_runs(load_study("demo", SETTINGS))[0]
    assert run.run_id == planned_runs(load_study("demo", settings))[0].run_id, "how it is trained is not part of a run's identity"
    homes = [checkpoints.run_directory(root, run.run_id) for root in (alone, resized)]
    for step in run.checkpoints:
        first, second = (checkpoints.read(home / f"step-{step:08d}") for home in homes)
        assert first.weights_sha256 == second.weights_sha256
        assert [replace(loss, value=0.0, stderr=0.0) for loss in first.losses] == [
            replace(loss, value=0.0, stderr=0.0) for loss in second.losses
        ]
        np.testing.assert_allclose([loss.value for loss in second.losses], [loss.value for loss in first.losses], rtol=1e-5)
    (_, expected), (step, found) = (next(checkpoints.states(root, run.run_id)) for root in (alone, resized))
    assert step == STEPS and (homes[1] / "state" / f"step-{STEPS:08d}" / ".metadata").is_file()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    events = journal.events(homes[1])
    resumed = [(e["world_size"], e["step"]) for e in events if e["event"] == "resumed"]
    assert [world for world, _ in resumed] == [2, 2, 1, 2]
    assert resumed[1][1] == run.checkpoints[1], "the state before the damaged one"
    assert resumed[1][1] < resumed[2][1] < resumed[3][1]
    assert len([e for e in events if e["event"] == "damaged"]) == 1


def short_of_memory(rank: int, world: int, port: int, settings: Sequence[str], results: Path, corpus: Path, begins: bool) -> None:
    """One rank of two; the second has memory for two sequences. A group that `begins` ends as one does whose memory is short."""
    meet(rank, world, port)
    whole = Trainer._pass

    def two_fit(self: Trainer, lane: int, rows: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
        if rank == 1 and len(rows) > 2:
            raise torch.OutOfMemoryError
        return whole(self, lane, rows, weight)

    Trainer._pass = two_fit  # type: ignore[method-assign]
    if not begins:
        one_rank(settings, results, corpus, STEPS, rank, world)
        dist.destroy_process_group()
        return
    with pytest.raises(PassTooLarge if rank == 1 else RuntimeError):  # the first finds the second gone
        one_rank(settings, results, corpus, STEPS, rank, world)


def test_a_group_whose_memory_is_short_begins_anew_with_smaller_passes(corpus: Path, tmp_path: Path) -> None:
    settings = (*SETTINGS, SHARDED, "training.precision=bf16", "training.micro_batch=null")
    together(2, short_of_memory, settings, tmp_path, corpus, True)
    run = planned_runs(load_study("demo", settings))[0]
    home = checkpoints.run_directory(tmp_path, run.run_id)
    assert journal.state(home / PASSES) == {"sequences": 2}
    together(2, short_of_memory, settings, tmp_path, corpus, False)
    assert [checkpoint.step for checkpoint in checkpoints.completed(tmp_path, run.run_id)] == list(run.checkpoints)
