"""Where a run whose matrices are spread over ranks goes on: all ranks choose one state together, and each reads its rows of it."""

from __future__ import annotations

import logging
from pathlib import Path

import torch.distributed as dist

from losslens.errors import EnvironmentFailure
from losslens.families import PlannedRun
from losslens.training import checkpoint as checkpoints
from losslens.training.branching import fitted, parent_directory
from losslens.training.loop import Trainer
from losslens.training.origins import begin
from losslens.training.sharded_state import read_rows, rows_of
from losslens.training.snapshot import load_state

logger = logging.getLogger(__name__)

UNSEEN = "unseen"


def resume_rows(trainer: Trainer, results: Path, planned: PlannedRun) -> None:
    """As `worker.resume`. Every rank looks at its part of a state's files, so that large ones are proven by all together.

    Raises:
        EnvironmentFailure: a rank does not see what rank 0 sees. UserError, DataMismatch: as `branching.parent_state` and `begin`.
    """
    assert trainer.shards
    shards, placed = trainer.shards, rows_of(trainer)
    found = _newest_sound(results, planned.run_id, shards.rank, shards.world, shards.host.get_group())
    if found:
        load_state(trainer, checkpoints.step_of(found), read_rows(found, placed, shards.rank, shards.world, shards.host))
        logger.info("%s resumes from step %d", planned.run_id, trainer.step)
    elif planned.branch:
        directory = parent_directory(results, planned)
        state = read_rows(directory, placed, shards.rank, shards.world, shards.host)
        load_state(trainer, planned.branch.step, fitted(planned, state))
    elif planned.origin:
        begin(trainer, planned.origin)


def _newest_sound(results: Path, run_id: str, rank: int, world: int, group: dist.ProcessGroup) -> Path | None:
    """The newest state in which no rank finds damage; damaged ones are named in the log."""
    seen = [[path.name for path in checkpoints.state_directories(results, run_id)]]
    dist.broadcast_object_list(seen, group=group, group_src=0)
    for name in seen[0]:
        directory = checkpoints.run_directory(results, run_id) / "state" / name
        verdicts: list[str | None] = [None] * world
        dist.all_gather_object(verdicts, _verdict(directory, rank, world), group=group)
        if UNSEEN in verdicts:
            raise EnvironmentFailure(
                f"a worker does not see the state {name} of {run_id} that another worker saved",
                "put the results on a disk that all nodes share (--results)",
            )
        damaged = next((verdict for verdict in verdicts if verdict), None)
        if damaged is None:
            return directory
        logger.warning("%s does not match its hash; resuming from the state before it", damaged)
    return None


def _verdict(directory: Path, rank: int, world: int) -> str | None:
    if not (directory / checkpoints.RECORD).is_file():
        return UNSEEN
    damaged = checkpoints.damage(directory, rank, world)
    return str(damaged) if damaged else None
