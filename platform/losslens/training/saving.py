"""What a save writes, and the one thread that writes it while training goes on.

A save begins with a `Snapshot`; the thread then writes, in this order and never another: rows of the log, the checkpoint with its
losses and rows, the state. So whoever finds a state finds all that came before it, wherever a kill came. One save is under way
at a time, since its snapshot lies in memory that the next one uses.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor

from losslens.corpus.packed import PackedCorpus
from losslens.families import PlannedRun
from losslens.models.export import hugging_face_state
from losslens.results import Results
from losslens.specs import TrainingSpec
from losslens.training import checkpoint as checkpoints
from losslens.training import journal, leaving
from losslens.training.heldout import Heldout, window_loss
from losslens.training.loop import Trainer
from losslens.training.origins import losses_of_parent
from losslens.training.schedules import multiplier
from losslens.training.snapshot import Snapshot, hang, scored

logger = logging.getLogger(__name__)


class Background:
    """One thread, one job at a time. Whatever a job raises is raised by the next call of `look`, `wait` or `begin`."""

    def __init__(self) -> None:
        each = torch.get_num_threads()  # as many for a kernel as training has: more would spin beside it
        self._pool = ThreadPoolExecutor(1, "saving", initializer=torch.set_num_threads, initargs=(each,))
        self._job: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._job is not None and not self._job.done()

    def look(self) -> None:
        """Raise what the job before has raised."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Until no job is under way."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def begin(self, job: Callable[[], None]) -> None:
        """Start a job as soon as the one before has ended."""
        self.wait()
        self._job = self._pool.submit(job)

    def close(self) -> None:
        """End the thread; a job under way is finished, and what it raises goes to the log: the caller ends for another reason."""
        try:
            self.wait()
        except Exception as error:
            logger.warning("a save failed while training ended: %s", error)
        self._pool.shutdown()


@dataclass(frozen=True, slots=True)
class Stretch:
    """The updates `first` to `last` for the log, at a mean rate."""

    first: int
    last: int
    tokens_per_second: float | None
    time: datetime


class Files:
    """What rank 0 writes of one run. Its methods are called from one thread at a time."""

    def __init__(
        self, root: Path, planned: PlannedRun, training: TrainingSpec, corpus: PackedCorpus, trainer: Trainer, *, attempt: int, world: int
    ) -> None:
        self.root, self.planned, self.training, self.corpus = root, planned, training, corpus
        self.attempt, self.world = attempt, world
        self.results, self.home = Results(root), checkpoints.run_directory(root, planned.run_id)
        sources = {name: corpus.heldout(name) for name in corpus.sources}
        self.heldout = Heldout(sources, dict(zip(corpus.sources, corpus.weights, strict=True)), trainer.device)
        self._autocast, self._device = trainer.autocast, trainer.device
        self._hold_models(trainer)

    def _hold_models(self, trainer: Trainer) -> None:
        # Made before training begins: what a model keeps between calls is not copied while a step is under way.
        self._live, self._saved = (trainer.model.twin().requires_grad_(False) for _ in range(2))
        hang(self._live, trainer.average or trainer.parameters)

    def nats_on_device(self) -> dict[str, Tensor]:
        """Held-out losses in the order of a device's work, which nothing waits for; nothing on a CPU, where `save` measures them."""
        if self._device.type == "cpu":
            return {}
        return self.heldout.nats(self._live, self._autocast)

    def save(self, snapshot: Snapshot, stretch: Stretch, *, checkpoint: bool, answers: bool) -> None:
        """The log, a checkpoint if asked for, and a state; then `answers` the request for one."""
        snapshot.wait()
        self.log(snapshot.state["losses"], snapshot.state["grad_norms"], stretch)
        if checkpoint:
            self._checkpoint(snapshot)
        checkpoints.write_state(self.root, self.planned, snapshot.step, snapshot.state)
        if answers:
            leaving.answer_afar(self.home)
        journal.note(self.home, "saved", step=snapshot.step)

    def log(self, losses: Tensor, norms: Tensor, stretch: Stretch) -> None:
        """Rows of `train_log`."""
        planned, peak, schedule = self.planned, self.planned.peak_lr, self.training.schedule
        found, sizes = losses[: stretch.last].tolist(), norms[: stretch.last].tolist()
        self.results.write("train_log", [
            {
                "run_id": planned.run_id, "attempt": self.attempt, "step": step + 1, "tokens": (step + 1) * planned.batch_tokens,
                "loss": _finite(found[step]), "lr": peak * multiplier(schedule, step, planned.steps, planned.branch),
                "grad_norm": _finite(sizes[step]),
                "tokens_per_second": stretch.tokens_per_second, "world_size": self.world, "time": stretch.time,
            }
            for step in range(stretch.first, stretch.last)
        ])  # fmt: skip

    def _checkpoint(self, snapshot: Snapshot) -> None:
        hang(self._saved, scored(self._saved, snapshot.state))
        nats = snapshot.nats or self.heldout.nats(self._saved, self._autocast)
        losses = window_loss(snapshot.state["losses"], snapshot.step, self.planned.batch_tokens)
        written = checkpoints.write(
            self.root,
            self.planned,
            snapshot.step,
            hugging_face_state(self._saved.state_dict(), self.planned.shape),
            [*losses, *self.heldout.losses(nats), *losses_of_parent(self.planned)],
            self.corpus.tokenizer_dir,
            self.corpus.eos,
        )
        publish(self.results, written)


def publish(results: Results, checkpoint: checkpoints.Checkpoint) -> None:
    """The checkpoint's rows of `checkpoints` and `losses`; publishing twice adds nothing."""
    results.write("checkpoints", [{
        "checkpoint_id": checkpoint.checkpoint_id, "run_id": checkpoint.run_id, "step": checkpoint.step, "tokens": checkpoint.tokens,
        "flops": checkpoint.flops, "path": str(checkpoint.path), "weights_sha256": checkpoint.weights_sha256,
        "created_at": datetime.fromisoformat(checkpoint.created_at),
    }])  # fmt: skip
    results.write("losses", [{"checkpoint_id": checkpoint.checkpoint_id, **asdict(loss)} for loss in checkpoint.losses])


def _finite(value: float) -> float | None:
    """NULL for what an update that was skipped has no number for."""
    return value if math.isfinite(value) else None
