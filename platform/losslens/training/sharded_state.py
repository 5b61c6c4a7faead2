"""States of runs whose matrices are spread over ranks: every rank writes its rows, and any number of ranks read them back.

The files are those of torch.distributed.checkpoint: one a rank and `.metadata`, which says where each row is. Names and meaning
are those of `snapshot.live_state`, so a run goes on from a state of whole matrices (`state.safetensors`) too, and a run with
whole matrices from one of these. All of it is host memory and a gloo group of its own, so that it can be done by a thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from losslens.training.checkpoint import STATE, synced_hash

if TYPE_CHECKING:
    from losslens.training.loop import Trainer


@dataclass(frozen=True, slots=True)
class Rows:
    """Which part of a tensor of shape `whole` a rank holds: along `dim`, in as many equal parts as there are ranks, the last shorter."""

    whole: torch.Size
    dim: int

    def of(self, rank: int, world: int) -> slice:
        """A rank's part."""
        each = -(-self.whole[self.dim] // world)
        return slice(min(rank * each, self.whole[self.dim]), min((rank + 1) * each, self.whole[self.dim]))


# The part that a rank holds of the tensor with this name and whole shape; None: all of it.
Placed = Callable[[str, torch.Size], Rows | None]


def rows_of(trainer: Trainer) -> Placed:
    """The part of each tensor of `snapshot.live_state`, given its name and its shape, whole or this rank's."""
    assert trainer.shards
    owned, parameters = trainer.shards.owned, trainer.parameters
    named = dict(owned.named_parameters())

    def placed(name: str, shape: torch.Size) -> Rows | None:
        kind, _, rest = name.partition(".")
        if kind not in ("model", "average", "optimizer"):
            return None
        of = named[rest] if kind == "model" else parameters[int(rest)] if kind == "average" else trainer.optimizers.owner(rest)
        if not owned.spreads(of) or not shape:
            return None
        stacked = len(shape) - of.dim()  # 1 where an optimizer has stacked matrices of one shape
        return Rows(torch.Size((*shape[:stacked], *owned.whole(of))), stacked)

    return placed


def write_rows(directory: Path, state: Mapping[str, Tensor], rows: Mapping[str, Rows | None], mesh: DeviceMesh) -> dict[str, str]:
    """Write this rank's part of a state, all ranks at once; returns the hashes of this rank's files, which are on the disk by then.

    Raises:
        OSError: a rank could not write. Every rank raises it.
    """
    spread = {name: _spread(tensor, rows[name], mesh) for name, tensor in state.items()}
    group = mesh.get_group()
    try:
        save(spread, storage_writer=FileSystemWriter(directory, sync_files=False), process_group=group)
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                raise failure from error
        raise
    rank = dist.get_rank(group)
    own = [*directory.glob(f"__{rank}_*"), *([directory / ".metadata"] if rank == 0 else [])]
    return {file.name: synced_hash(file) for file in own}


def read_rows(directory: Path, placed: Placed, rank: int = 0, world: int = 1, mesh: DeviceMesh | None = None) -> dict[str, Tensor]:
    """This rank's part of a complete state, whoever wrote it; other parts are not read."""
    if (directory / STATE).is_file():
        return _from_whole(directory / STATE, placed, rank, world)
    reader = FileSystemReader(directory)
    targets: dict[str, Tensor] = {}
    for name, stored in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        rows = placed(name, stored.size)
        shape = list(stored.size)
        if rows:
            part = rows.of(rank, world)
            shape[rows.dim] = part.stop - part.start
        targets[name] = _spread(torch.empty(shape, dtype=stored.properties.dtype), rows, mesh)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each rank reads by itself
        load(targets, storage_reader=reader, no_dist=True)
    return {name: target.to_local() if isinstance(target, DTensor) else target for name, target in targets.items()}


def _spread(tensor: Tensor, rows: Rows | None, mesh: DeviceMesh | None) -> Tensor:
    if rows is None:
        return tensor
    assert mesh is not None
    stride = torch.empty(rows.whole, device="meta").stride()
    return DTensor.from_local(tensor, mesh, [Shard(rows.dim)], run_check=False, shape=rows.whole, stride=stride)


def _from_whole(file: Path, placed: Placed, rank: int, world: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # not a dict
            whole = tensors.get_slice(name)
            rows = placed(name, torch.Size(whole.get_shape()))
            if rows is None:
                found[name] = tensors.get_tensor(name)
            else:
                found[name] = whole[(slice(None),) * rows.dim + (rows.of(rank, world),)]
    return found
