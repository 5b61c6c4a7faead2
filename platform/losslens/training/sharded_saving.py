"""What a save writes where matrices are spread over ranks: every rank its rows of the state, and together one checkpoint.

It is done by the same thread as any other save (`saving.py`), one on each rank, from snapshots on the host and through a process
group of their own, so the device and the ranks' exchanges know nothing of it. A checkpoint's tensors go to rank 0 one by one and
from there into the file: no rank ever holds more than one of them whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from losslens.corpus.packed import PackedCorpus
from losslens.families import PlannedRun
from losslens.models.export import hugging_face_state, write_card
from losslens.models.streamed import StreamedSafetensors
from losslens.specs import TrainingSpec
from losslens.training import checkpoint as checkpoints
from losslens.training import journal, leaving
from losslens.training.heldout import window_loss
from losslens.training.loop import Trainer
from losslens.training.origins import losses_of_parent
from losslens.training.saving import Files, Stretch, publish
from losslens.training.sharded_state import rows_of, write_rows
from losslens.training.snapshot import Snapshot, scored

T = TypeVar("T")


class ShardedFiles(Files):
    """One on each rank; their methods are called at the same steps. Rank 0 writes what is not spread."""

    def __init__(
        self, root: Path, planned: PlannedRun, training: TrainingSpec, corpus: PackedCorpus, trainer: Trainer, *, attempt: int, world: int
    ) -> None:
        super().__init__(root, planned, training, corpus, trainer, attempt=attempt, world=world)
        assert trainer.shards
        self._trainer, self._placed = trainer, rows_of(trainer)
        self._rank, self._mesh, self._group = trainer.shards.rank, trainer.shards.host, trainer.shards.host.get_group()

    def _hold_models(self, trainer: Trainer) -> None:
        """None beside the one that trains: no rank has memory for it."""

    def nats_on_device(self) -> dict[str, Tensor]:
        """Held-out losses, which all ranks measure together: each gathers what the others have."""
        trainer = self._trainer
        with averaged(trainer):
            return self.heldout.nats(lambda tokens: trainer.with_weights(trainer.model, tokens), self._autocast)

    def save(self, snapshot: Snapshot, stretch: Stretch, *, checkpoint: bool, answers: bool) -> None:
        """As `Files.save`."""
        snapshot.wait()
        if self._rank == 0:
            self.log(snapshot.state["losses"], snapshot.state["grad_norms"], stretch)
        if checkpoint:
            self._checkpoint(snapshot)
        self._state(snapshot)
        if self._rank == 0:
            if answers:
                leaving.answer_afar(self.home)
            journal.note(self.home, "saved", step=snapshot.step)

    def _state(self, snapshot: Snapshot) -> None:
        rows = {name: self._placed(name, tensor.shape) for name, tensor in snapshot.state.items()}

        def part(directory: Path) -> dict[str, str]:
            everyones: list[dict[str, str]] = [{} for _ in range(self.world)]
            dist.all_gather_object(everyones, write_rows(directory, snapshot.state, rows, self._mesh), group=self._group)
            return {name: found for ones in everyones for name, found in ones.items()}

        self._together(lambda fill: checkpoints.write_state_with(self.root, self.planned, snapshot.step, fill), part)

    def _checkpoint(self, snapshot: Snapshot) -> None:
        def write(fill: Callable[[Path], None]) -> None:
            losses = window_loss(snapshot.state["losses"], snapshot.step, self.planned.batch_tokens)
            losses += [*self.heldout.losses(snapshot.nats), *losses_of_parent(self.planned)]
            publish(self.results, checkpoints.write_with(self.root, self.planned, snapshot.step, fill, losses))

        self._together(write, lambda directory: self._weights(directory, snapshot.state))

    def _together(self, write: Callable[[Callable[[Path], T]], None], part: Callable[[Path], T]) -> None:
        """Rank 0 calls `write`; where that wants a directory filled, every rank does its `part`. Returns once `write` has."""
        filled = False

        def fill(directory: Path) -> T:
            nonlocal filled
            filled = True
            self._from_first(directory)
            return part(directory)

        if self._rank:
            if directory := self._from_first(None):
                part(directory)
        else:
            write(fill)
            if not filled:
                self._from_first(None)
        dist.barrier(self._group)

    def _from_first(self, path: Path | None) -> Path | None:
        """What rank 0 says."""
        said = [path]
        dist.broadcast_object_list(said, group=self._group, group_src=0)
        return said[0]

    def _weights(self, directory: Path, state: dict[str, Tensor]) -> None:
        shape = self.planned.shape
        if self._rank:
            for _ in self._whole(state):
                pass
            return
        write_card(directory, shape, self.corpus.tokenizer_dir, self.corpus.eos)
        like = {name: torch.empty(part.shape, device="meta") for name, part in self._trainer.model.named_parameters()}
        shapes = {name: tensor.shape for name, tensor in hugging_face_state(like, shape).items()}
        with StreamedSafetensors(directory / "model.safetensors", shapes) as file:
            for name, tensor in self._whole(state):
                for piece, values in hugging_face_state({name: tensor}, shape).items():
                    file.write(piece, values)

    def _whole(self, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """On rank 0 each parameter's whole tensor, one at a time; nothing on others, which send their rows."""
        names = [name for name, _ in self._trainer.weights.named_parameters()]
        for name, own in zip(names, scored(self._trainer.weights, state), strict=True):
            rows = self._placed(f"model.{name}", own.shape)
            if rows is None:
                if self._rank == 0:
                    yield name, own
            elif self._rank:
                if own.numel():
                    dist.send(own, group=self._group, group_dst=0)
            else:
                whole = torch.empty(rows.whole, dtype=own.dtype)
                whole[rows.of(0, self.world)] = own
                for rank in range(1, self.world):
                    if (part := whole[rows.of(rank, self.world)]).numel():
                        dist.recv(part, group=self._group, group_src=rank)
                yield name, whole


@contextlib.contextmanager
def averaged(trainer: Trainer) -> Iterator[None]:
    """Within the block the trainer's weights are their averages."""
    raw = [p.detach().clone() for p in trainer.parameters] if trainer.average else []
    if raw:
        torch._foreach_copy_([p.data for p in trainer.parameters], trainer.average)
    try:
        yield
    finally:
        if raw:
            torch._foreach_copy_([p.data for p in trainer.parameters], raw)
