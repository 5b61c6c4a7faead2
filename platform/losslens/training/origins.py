"""How a run begins with the weights of a checkpoint: proven, put into the model, and remembered with every checkpoint of the run.

They are read at step 0 only. From then on the run goes on from states of its own, as any run does, and the parent may be gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from losslens.corpus.shards import joined_sha256, sha256
from losslens.errors import DataMismatch, UserError
from losslens.families import PARENT, Origin, PlannedRun
from losslens.training import checkpoint as checkpoints
from losslens.training.checkpoint import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from losslens.training.loop import Trainer  # a driver asks here what is ready, and does without torch


def require_origin(results: Path, run: PlannedRun) -> None:
    """Nothing where the run can begin, or has begun.

    Raises:
        UserError: the checkpoint is gone. DataMismatch: its weights are not those that the run was planned with.
    """
    if run.origin and not checkpoints.saved_steps(results, run.run_id):
        prove(run.origin)


def prove(origin: Origin) -> None:
    """Read the weights' files and compare their hash.

    Raises:
        UserError, DataMismatch: as `require_origin`.
    """
    files = sorted(Path(origin.path).glob("model*.safetensors"))
    if not files:
        raise UserError(f"the checkpoint {origin.checkpoint_id} is no longer in {origin.path}", "bring it back, or tune another one")
    if joined_sha256([sha256(file) for file in files]) != origin.weights_sha256:
        raise DataMismatch(
            f"the weights in {origin.path} are not those of the checkpoint {origin.checkpoint_id}",
            "no run begins with them: restore the files, or tune another checkpoint",
        )


def begin(trainer: Trainer, origin: Origin) -> None:
    """Put the weights of `origin` into a trainer at step 0, and into its average of weights. Each rank reads the file, and keeps its rows.

    Raises:
        UserError, DataMismatch: as `require_origin`; a tensor is missing, unknown or of another shape.
    """
    import torch

    from losslens.models.scoring import load_for_scoring

    prove(origin)
    placed = None
    if trainer.shards:
        from losslens.training.sharded_state import rows_of  # here: what shards need takes a second to import

        placed, rank, world = rows_of(trainer), trainer.shards.rank, trainer.shards.world
    weights = dict(load_for_scoring(Path(origin.path)).module.named_parameters())
    with torch.no_grad():
        for name, parameter in trainer.weights.named_parameters():
            values: Tensor = weights.pop(name)
            rows = placed(f"model.{name}", values.shape) if placed else None
            if rows:
                values = values[(slice(None),) * rows.dim + (rows.of(rank, world),)]
            assert values.shape == parameter.shape, name
            parameter.copy_(values)
        for average, parameter in zip(trainer.average, trainer.parameters, strict=True) if trainer.average else ():
            average.copy_(parameter)
    assert not weights, f"the model lacks {sorted(weights)}"


def losses_of_parent(run: PlannedRun) -> list[Loss]:
    """What is known of the losses of the checkpoint that the run began with, as `parent/<dataset>`."""
    rows = run.origin.losses if run.origin else ()
    return [Loss(**{**row, "dataset": PARENT + row["dataset"]}) for row in rows]
