"""float32 training gives the same bits at any world size, and through any chain of them: real processes, gloo between them."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from losslens.corpus.order import rank_slice
from losslens.families import Shape
from losslens.models import build
from losslens.specs import OptimizerSpec, ScheduleSpec, TrainingSpec
from losslens.training.loop import Trainer, run
from losslens.training.optimizers import Optimizers
from losslens.training.snapshot import load_state, state_of
from losslens.training.watch import Watch
from tests.ports import free_port

SHAPE = Shape("paper", 61, 32, 96, 2, 1, 2, 24, 100.0, tie_embeddings=False)
MIXTURE = Shape("mixtral", 61, 32, 48, 2, 1, 2, 24, 100.0, tie_embeddings=False, experts=4, active_experts=2)
STATE_SPACE = Shape("mamba2", 61, 32, 64, 2, 2, 2, 24, 100.0, tie_embeddings=False, state_size=8)
# Shape and optimizer by name.
OURS = {name: (SHAPE, name) for name in ("adamw", "muon", "lion", "sgd")}
THEIRS = {"mixture of experts": (MIXTURE, "muon"), "state space": (STATE_SPACE, "adamw")}  # transformers' classes
STEPS, BATCH, MICRO = 60, 7, 2  # micro-batches of 2, 2, 2 and 1 sequences

pytestmark = pytest.mark.timeout(240)


class Until(Watch):
    """Stops the loop after a step, as a rank does that leaves."""

    def __init__(self, trainer: Trainer, stop: int) -> None:
        self.trainer, self.stop = trainer, stop

    def stepped(self) -> None:
        if self.trainer.step == self.stop:
            raise StopIteration


def make(case: str) -> Trainer:
    shape, optimizer = (OURS | THEIRS)[case]
    spec = TrainingSpec(
        global_batch=BATCH,
        precision="float32",
        optimizer=OptimizerSpec(name=optimizer, lr=0.02, adam_lr=0.01, weight_decay=0.05),  # type: ignore[arg-type]
        schedule=ScheduleSpec(name="cosine", warmup_steps=5, average=0.9),
    )
    torch.manual_seed(np.random.default_rng().integers(1 << 30))  # whatever the state of the process's generator
    model = build(shape, seed=0)
    optimizers = Optimizers(model, spec.optimizer, peak_lr=spec.optimizer.lr, width=shape.d_model, precision=spec.precision)
    return Trainer(model, optimizers, spec, STEPS, BATCH, shape.seq_len, torch.device("cpu"), MICRO)


def part(home: Path, cases: list[str], stop: int, rank: int, world: int, port: int) -> None:
    """One rank, with each case, from the saved state to a step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timedelta(seconds=60), world, rank)
    for case in cases:
        trainer, state = make(case), home / case
        if state.exists():
            saved = load_file(state)
            load_state(trainer, int(saved.pop("step")), saved)
        first, last = rank_slice(BATCH, rank, world, MICRO)
        rows = (np.random.default_rng(step).integers(0, 61, (BATCH, SHAPE.seq_len + 1))[first:last] for step in range(trainer.step, STEPS))
        generator = torch.random.get_rng_state()
        with contextlib.suppress(StopIteration):
            run(trainer, rows, Until(trainer, stop))
        assert trainer.step == stop
        assert torch.equal(generator, torch.random.get_rng_state()), "an update drew random numbers: their state must be saved too"
        dist.barrier()
        if rank == 0:
            save_file(state_of(trainer) | {"step": torch.tensor(stop)}, state)
    dist.destroy_process_group()


def train(home: Path, chain: list[tuple[int, int]], cases: Iterable[str]) -> None:
    """Train each case through a chain of (world size, up to which step)."""
    home.mkdir()
    spawn = multiprocessing.get_context("spawn")
    for world, stop in chain:
        port = free_port()
        ranks = [spawn.Process(target=part, args=(home, list(cases), stop, rank, world, port)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        assert [process.exitcode for process in ranks] == [0] * world


def test_resized_from_2_to_1_to_3_the_weights_are_the_same_bits(tmp_path: Path) -> None:
    train(tmp_path / "alone", [(1, STEPS)], OURS)
    train(tmp_path / "resized", [(2, 17), (1, 25), (3, STEPS)], OURS)
    for case in OURS:
        alone, resized = load_file(tmp_path / "alone" / case), load_file(tmp_path / "resized" / case)
        assert alone.keys() == resized.keys()
        assert [name for name in alone if not torch.equal(alone[name], resized[name])] == []
        assert len(set(alone["losses"].tolist())) == STEPS


def test_models_of_transformers_too(tmp_path: Path) -> None:
    """Experts, routing and its penalty depend on a micro-batch alone."""
    train(tmp_path / "alone", [(1, 8)], THEIRS)
    train(tmp_path / "resized", [(2, 3), (1, 8)], THEIRS)
    for case in THEIRS:
        alone, resized = load_file(tmp_path / "alone" / case), load_file(tmp_path / "resized" / case)
        assert [name for name in alone if not torch.equal(alone[name], resized[name])] == []
        assert len(set(alone["losses"][:8].tolist())) == 8
