"""One rank of one run: model, optimizer, data and checkpoints put together around the loop. No Ray in here.

`train` is what a Ray Train worker calls, and what a bench calls without Ray. Rank 0 writes; every rank knows how to save
and leave when it is asked to (`leaving.py`), so that a planned resize costs no step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from losslens.corpus import shards
from losslens.corpus.packed import PackedCorpus
from losslens.errors import EnvironmentFailure, TrainingDiverged
from losslens.families import PlannedRun
from losslens.models import build
from losslens.models.export import hugging_face_state
from losslens.results import Results
from losslens.specs import StudySpec, canonical_text
from losslens.training import checkpoint as checkpoints
from losslens.training import journal, leaving
from losslens.training.branching import parent_state
from losslens.training.heldout import heldout_losses, window_loss
from losslens.training.lanes import lanes_of, share_threads
from losslens.training.loop import Trainer, Watch, run
from losslens.training.optimizers import Optimizers
from losslens.training.schedules import multiplier

logger = logging.getLogger(__name__)

SHOW_EVERY_S = 0.5  # between two progress files

# (packed corpus directory, seed, cursor, steps, global_batch, rank, world) -> this rank's rows, batch by batch
Feed = Callable[..., Iterator[np.ndarray]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: `diverged` is the reason it stopped early, None when it reached its budget."""

    run_id: str
    step: int
    attempt: int
    world_size: int
    seconds: float
    diverged: str | None = None


def train(
    spec: StudySpec,
    planned: PlannedRun,
    results: Path,
    corpus_dir: Path,
    feed: Feed,
    *,
    rank: int = 0,
    world: int = 1,
    left: Callable[[int], None] = lambda step: None,
) -> Outcome:
    """Train `planned` from its newest state, or from scratch, to its budget.

    Every rank builds the model; rank 0 alone writes. `feed` is `corpus.feed.windows` or `corpus.feed.direct`. `left(step)`
    is called on every rank once the state at which all leave has been saved.
    """
    started = time.perf_counter()
    home = checkpoints.run_directory(results, planned.run_id)
    if rank == 0:
        journal.note(home, "entered", world_size=world)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    lanes = 1
    if device.type == "cpu":
        lanes = lanes_of(spec.cluster.threads, -(-planned.global_batch // world), planned.micro_batch)
        share_threads(spec.cluster.threads, lanes)
    corpus = PackedCorpus.open(corpus_dir)
    trainer = make_trainer(spec, planned, device, corpus.eos, lanes)
    resume(trainer, results, planned)
    if rank == 0 and (newest := checkpoints.saved_step(results, planned.run_id)) > trainer.step:
        journal.note(home, "damaged", step=newest)
    writer = Writer(results, spec, planned, corpus, trainer, rank, world, left)
    batches = feed(
        corpus_dir,
        planned.seed,
        cursor=trainer.step * planned.global_batch,
        steps=planned.steps - trainer.step,
        global_batch=planned.global_batch,
        rank=rank,
        world=world,
        unit=planned.micro_batch or 1,
    )
    diverged = None
    try:
        if trainer.step == 0 and 0 in planned.checkpoints:
            writer.save(0.0)
        run(trainer, batches, writer)
    except TrainingDiverged as error:  # returned, not raised: a retry would diverge again
        diverged = str(error)
        writer.log(0.0)
    return Outcome(planned.run_id, trainer.step, writer.attempt, world, time.perf_counter() - started, diverged)


def make_trainer(spec: StudySpec, planned: PlannedRun, device: torch.device, eos_token_id: int, lanes: int = 1) -> Trainer:
    """A trainer at step 0 with weights that depend on the run's seed only."""
    model = build(planned.shape, seed=planned.seed, initialisation=spec.family.initialisation, eos_token_id=eos_token_id).to(device)
    optimizers = Optimizers(
        model, spec.training.optimizer, peak_lr=planned.peak_lr, width=planned.shape.d_model, precision=spec.training.precision
    )
    return Trainer(
        model=model,
        optimizers=optimizers,
        spec=spec.training,
        steps=planned.steps,
        global_batch=planned.global_batch,
        seq_len=planned.shape.seq_len,
        device=device,
        micro_batch=planned.micro_batch,
        lanes=lanes,
        branch=planned.branch,
    )


def resume(trainer: Trainer, results: Path, planned: PlannedRun) -> None:
    """Continue from the newest state that matches its hash, a branch's first from its parent's; rank 0 chooses, all ranks follow.

    Raises:
        EnvironmentFailure: this rank does not see what rank 0 sees. UserError, DataMismatch: as `parent_state`.
    """
    run_id = planned.run_id
    step, state = next(checkpoints.states(results, run_id), (0, {}))
    if dist.is_initialized() and dist.get_world_size() > 1:
        chosen = [step]
        dist.broadcast_object_list(chosen)
        if chosen[0] != step:  # written or forgotten while this rank looked
            step, state = next((s for s in checkpoints.states(results, run_id) if s[0] == chosen[0]), (0, {}))
        if step != chosen[0]:
            raise EnvironmentFailure(
                f"a worker does not see the state of step {chosen[0]} of {run_id} that another worker saved",
                "put the results on a disk that all nodes share (--results)",
            )
    if planned.branch and not step:
        load_state(trainer, planned.branch.step, parent_state(results, planned))
    if step:
        load_state(trainer, step, state)
        logger.info("%s resumes from step %d", run_id, step)


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that training goes on from, as named CPU tensors: weights, average, optimizer, losses so far."""
    state: dict[str, Tensor] = {f"model.{name}": p for name, p in trainer.model.named_parameters()}
    state |= {f"average.{i}": tensor for i, tensor in enumerate(trainer.average)}
    state |= {f"optimizer.{name}": tensor for name, tensor in trainer.optimizers.state().items()}
    state |= {"losses": trainer.losses, "grad_norms": trainer.grad_norms}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}


@torch.no_grad()
def load_state(trainer: Trainer, step: int, state: dict[str, Tensor]) -> None:
    """The inverse of `state_of`."""
    for name, parameter in trainer.model.named_parameters():
        parameter.copy_(state[f"model.{name}"])
    for i, tensor in enumerate(trainer.average):
        tensor.copy_(state[f"average.{i}"])
    trainer.optimizers.load({name.removeprefix("optimizer."): t for name, t in state.items() if name.startswith("optimizer.")})
    trainer.losses.copy_(state["losses"])
    trainer.grad_norms.copy_(state["grad_norms"])
    trainer.step = trainer.looked = step


class Writer(Watch):
    """What a rank does between updates. Rank 0 writes checkpoints, states, their losses, the log and a progress file."""

    def __init__(
        self,
        results: Path,
        spec: StudySpec,
        planned: PlannedRun,
        corpus: PackedCorpus,
        trainer: Trainer,
        rank: int,
        world: int,
        left: Callable[[int], None],
    ) -> None:
        self.root, self.spec, self.planned, self.corpus, self.trainer = results, spec, planned, corpus, trainer
        self.results, self.rank, self.world, self._left = Results(results), rank, world, left
        self.save_at = frozenset(planned.checkpoints)
        self.logged = trainer.step
        self.heldout = {name: corpus.heldout(name) for name in corpus.sources}
        self.weights = dict(zip(corpus.sources, corpus.weights, strict=True))
        self.home = checkpoints.run_directory(results, planned.run_id)
        self.attempt = _next_attempt(self.home) if rank == 0 else 0
        if rank == 0:
            journal.note(self.home, "resumed", step=trainer.step, world_size=world, attempt=self.attempt)
        self._resumed_at = self._shown = trainer.step
        self._rate: float | None = None
        self._look = trainer.look
        self._slow: dict[str, Any] | None = None
        self._passes = trainer.passes.most
        self._saved_at = self._shown_at = time.monotonic()
        if rank == 0:
            self.results.write("runs", [run_row(spec, planned, corpus.fingerprint)])
            for checkpoint in checkpoints.completed(results, planned.run_id):
                publish(self.results, checkpoint)  # a kill may have come between the rename and these rows

    def save(self, tokens_per_second: float) -> None:
        """A checkpoint of this moment, its losses, the log up to here, and a state to resume from."""
        if self.rank:
            return
        self.log(tokens_per_second)  # first: a kill before the checkpoint repeats these steps, a kill after it must not lose them
        trainer = self.trainer
        with trainer.averaged():
            losses = [*window_loss(trainer), *heldout_losses(trainer, self.heldout, self.weights)]
            weights = hugging_face_state(trainer.model.state_dict(), self.planned.shape)
            checkpoint = checkpoints.write(
                self.root, self.planned, trainer.step, weights, losses, self.corpus.tokenizer_dir, self.corpus.eos
            )
        publish(self.results, checkpoint)
        self._write_state()  # last: whoever resumes from it will not pass this checkpoint again

    def stepped(self) -> None:
        """After every update: show progress, and save a state when one was asked for or is due."""
        now = time.monotonic()
        if self.trainer.step == self._resumed_at + 1 and self.rank == 0:
            journal.note(self.home, "stepping", step=self.trainer.step, world_size=self.world, attempt=self.attempt)
        if self.rank == 0:
            self._tell()
        if self.rank or now - self._shown_at < SHOW_EVERY_S:
            return
        self._rate = (self.trainer.step - self._shown) * self.planned.batch_tokens / (now - self._shown_at)
        self._show()
        if leaving.save_asked() or leaving.asked_from_afar(self.home) or now - self._saved_at > self.spec.cluster.save_every:
            self.save_state()

    def _tell(self) -> None:
        """The findings of a new look, into the journal: what was skipped, spikes, who is slow; and passes that became smaller."""
        trainer = self.trainer
        if trainer.passes.most != self._passes:
            self._passes = trainer.passes.most
            journal.note(self.home, "passes", step=trainer.step, sequences=self._passes)
        if trainer.look is None or trainer.look is self._look:
            return
        self._look = look = trainer.look
        if look.skipped:
            journal.note(self.home, "skipped", steps=look.skipped)
        for spike in look.spikes:
            journal.note(self.home, "spike", **asdict(spike))
        slow = asdict(look.slow[0]) if look.slow else None
        if slow and (self._slow is None or slow["rank"] != self._slow["rank"]):
            journal.note(self.home, "slow", step=trainer.step, **slow)
        self._slow = slow

    def wants_to_leave(self) -> bool:
        """Whether the controller asked this rank to leave."""
        return leaving.asked()

    def leave(self) -> None:
        """Save a state, say so, and wait until the group is taken down; go on when that does not come."""
        step = self.trainer.step
        self.save_state()
        self._left(step)
        leaving.hold()

    def save_state(self) -> None:
        """The log up to here and a state of this moment."""
        if self.rank == 0:
            self.log(self._rate)
            self._write_state()

    def _write_state(self) -> None:
        checkpoints.write_state(self.root, self.planned, self.trainer.step, state_of(self.trainer))
        self._saved_at = time.monotonic()
        leaving.answer_afar(self.home)
        journal.note(self.home, "saved", step=self.trainer.step)

    def log(self, tokens_per_second: float | None) -> None:
        """Rows of `train_log` for the updates since the last call, and the progress file."""
        if self.rank:
            return
        trainer, planned, now = self.trainer, self.planned, datetime.now(UTC)
        losses, norms = trainer.losses.tolist(), trainer.grad_norms.tolist()
        peak, schedule = planned.peak_lr, self.spec.training.schedule
        self.results.write("train_log", [
            {
                "run_id": planned.run_id, "attempt": self.attempt, "step": step + 1, "tokens": (step + 1) * planned.batch_tokens,
                "loss": _finite(losses[step]), "lr": peak * multiplier(schedule, step, planned.steps, planned.branch),
                "grad_norm": _finite(norms[step]),
                "tokens_per_second": tokens_per_second, "world_size": self.world, "time": now,
            }
            for step in range(self.logged, trainer.step)
        ])  # fmt: skip
        self.logged = trainer.step
        self._show()

    def _show(self) -> None:
        """The progress file: where this run is, for people and for the share of workers that it gets."""
        self._shown, self._shown_at = self.trainer.step, time.monotonic()
        progress = {"step": self.trainer.step, "steps": self.planned.steps, "tokens_per_second": self._rate, "loss": self.trainer.seen_loss,
                    "world_size": self.world, "attempt": self.attempt, "slow": self._slow,
                    "time": datetime.now(UTC).isoformat()}  # fmt: skip
        journal.replace(self.home / "progress.json", progress)


def publish(results: Results, checkpoint: checkpoints.Checkpoint) -> None:
    """The checkpoint's rows of `checkpoints` and `losses`; publishing twice adds nothing."""
    results.write("checkpoints", [{
        "checkpoint_id": checkpoint.checkpoint_id, "run_id": checkpoint.run_id, "step": checkpoint.step, "tokens": checkpoint.tokens,
        "flops": checkpoint.flops, "path": str(checkpoint.path), "weights_sha256": checkpoint.weights_sha256,
        "created_at": datetime.fromisoformat(checkpoint.created_at),
    }])  # fmt: skip
    results.write("losses", [{"checkpoint_id": checkpoint.checkpoint_id, **asdict(loss)} for loss in checkpoint.losses])


def run_row(spec: StudySpec, planned: PlannedRun, corpus: str) -> dict[str, Any]:
    """The run's row of `runs`; the same whenever it is made, so that a resumed run adds nothing."""
    shape, tokenizer = planned.shape, spec.corpus.tokenizer
    return {
        "run_id": planned.run_id, "study": planned.study, "size": planned.size, "architecture": shape.architecture,
        "params": shape.params, "params_non_embedding": shape.params_non_embedding,
        "tokenizer": tokenizer.path or tokenizer.kind, "vocab_size": shape.vocab_size, "corpus": corpus, "seq_len": shape.seq_len,
        "optimizer": spec.training.optimizer.name, "schedule": spec.training.schedule.name, "peak_lr": planned.peak_lr,
        "batch_tokens": planned.batch_tokens, "tokens_planned": planned.tokens, "seed": planned.seed, "source": "losslens",
        "spec": canonical_text(spec), "parent_checkpoint_id": planned.branch.checkpoint_id if planned.branch else None,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    """NULL for what an update that was skipped has no number for."""
    return value if math.isfinite(value) else None


def _next_attempt(home: Path) -> int:
    home.mkdir(parents=True, exist_ok=True)
    counter = home / "attempts"
    attempt = int(counter.read_text()) + 1 if counter.is_file() else 1
    shards.write_bytes(counter, str(attempt).encode())
    return attempt
