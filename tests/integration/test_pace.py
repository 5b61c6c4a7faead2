"""Two real ranks: the one that is slow is named, and an update that is skipped is skipped in the same bits at any world size."""

from __future__ import annotations

import multiprocessing
import time
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
from losslens.training.snapshot import state_of
from losslens.training.watch import Watch
from tests.ports import free_port

SHAPE = Shape("paper", 61, 32, 96, 2, 1, 2, 24, 100.0, tie_embeddings=False)
STEPS, BATCH, MICRO = 30, 4, 2
POISON = 60  # a row that begins with it gives a loss that is not finite

pytestmark = pytest.mark.timeout(120)


def rows(step: int) -> np.ndarray:
    found = np.random.default_rng(step).integers(0, POISON, (BATCH, SHAPE.seq_len + 1))
    if step + 1 in (4, 20):
        found[-1, 0] = POISON  # the last rank's
    return found


def part(home: Path, rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timedelta(seconds=60), world, rank)
    spec = TrainingSpec(
        global_batch=BATCH, precision="float32", optimizer=OptimizerSpec(name="muon", lr=0.01), schedule=ScheduleSpec(average=0.9)
    )
    model = build(SHAPE, seed=0)
    optimizers = Optimizers(model, spec.optimizer, peak_lr=0.01, width=32, precision="float32")
    trainer = Trainer(model, optimizers, spec, STEPS, BATCH, SHAPE.seq_len, torch.device("cpu"), MICRO)
    true = trainer.nll_sum

    def nll_sum(tokens: torch.Tensor, lane: int = 0) -> torch.Tensor:
        if rank == 1:
            time.sleep(0.25)
        return true(tokens) * torch.where((tokens[:, 0] == POISON).any(), torch.nan, 1.0)

    trainer.nll_sum = nll_sum  # type: ignore[method-assign]
    first, last = rank_slice(BATCH, rank, world, MICRO)
    run(trainer, (rows(step)[first:last] for step in range(STEPS)), Watch())
    assert trainer.look is not None
    assert trainer.look.skipped == ()  # 4 and 20 were told by the look at step 25
    assert not torch.isfinite(trainer.losses[[3, 19]]).any()
    assert [(slow.rank, bool(slow.host)) for slow in trainer.look.slow] == ([(1, True)] if world == 2 else [])
    if rank == 0:
        save_file(state_of(trainer), home / f"{world}")
    dist.destroy_process_group()


@pytest.mark.parametrize("worlds", [(1, 2)])
def test_a_slow_rank_is_named_and_skipped_updates_are_the_same(tmp_path: Path, worlds: tuple[int, int]) -> None:
    spawn = multiprocessing.get_context("spawn")
    for world in worlds:
        port = free_port()
        ranks = [spawn.Process(target=part, args=(tmp_path, rank, world, port)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        assert [process.exitcode for process in ranks] == [0] * world
    one, two = load_file(tmp_path / "1"), load_file(tmp_path / "2")
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name].nan_to_num(), two[name].nan_to_num())] == []
