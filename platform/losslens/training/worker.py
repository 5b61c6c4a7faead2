"""One rank of one run: model, optimizer, data and checkpoints put together around the loop. No Ray in here.

`train` is what a Ray Train worker calls, and what a bench calls without Ray. Rank 0 writes; every rank knows how to save
and leave when it is asked to (`leaving.py`), so that a planned resize costs no step. What is written, and the thread that writes
it, are in `saving.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from losslens.corpus import shards
from losslens.corpus.packed import PackedCorpus
from losslens.errors import EnvironmentFailure, TrainingDiverged
from losslens.families import PlannedRun
from losslens.models import build
from losslens.results import Results
from losslens.specs import StudySpec, canonical_text
from losslens.training import checkpoint as checkpoints
from losslens.training import journal, leaving
from losslens.training.blocks import compile_blocks, recompute_blocks
from losslens.training.branching import parent_state
from losslens.training.compiling import compiles
from losslens.training.lanes import keep_freed_memory, lanes_of, share_threads
from losslens.training.loop import Trainer, run
from losslens.training.optimizers import Optimizers
from losslens.training.origins import begin
from losslens.training.outcome import Outcome
from losslens.training.resizing import PassTooLarge
from losslens.training.saving import Background, Files, Stretch, publish
from losslens.training.snapshot import Buffers, load_state
from losslens.training.watch import Watch

logger = logging.getLogger(__name__)

PASSES = "passes.json"  # of how many sequences, where memory did not hold a whole share and matrices are spread
SHOW_EVERY_S = 0.5  # between two progress files

# (packed corpus directory, seed, cursor, steps, global_batch, rank, world) -> this rank's rows, batch by batch
Feed = Callable[..., Iterator[np.ndarray]]


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
    device, lanes = _place(spec, planned, world)
    corpus = PackedCorpus.open(corpus_dir)
    trainer = make_trainer(spec, planned, device, corpus.eos, lanes)
    if trainer.shards:
        from losslens.training.sharded_resume import resume_rows  # here: what shards need takes a second to import

        resume_rows(trainer, results, planned)
    else:
        resume(trainer, results, planned)
    trainer.passes.limit(journal.state(home / PASSES).get("sequences"))
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
        writer.finish()
    except PassTooLarge as error:  # the group starts anew: the other ranks are waiting in an exchange
        journal.replace(home / PASSES, {"sequences": error.fewer})
        raise
    except TrainingDiverged as error:  # returned, not raised: a retry would diverge again
        diverged = str(error)
        writer.diverged()
    finally:
        writer.close()
    return Outcome(planned.run_id, trainer.step, writer.attempt, world, time.perf_counter() - started, diverged)


def _place(spec: StudySpec, planned: PlannedRun, world: int) -> tuple[torch.device, int]:
    """Where this rank computes, and how many passes side by side."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device()), 1
    lanes = 1 if _spreads(planned) else lanes_of(spec.cluster.threads, -(-planned.global_batch // world), planned.micro_batch)
    share_threads(spec.cluster.threads, lanes)
    keep_freed_memory()
    return torch.device("cpu"), lanes


def make_trainer(spec: StudySpec, planned: PlannedRun, device: torch.device, eos_token_id: int, lanes: int = 1) -> Trainer:
    """A trainer at step 0 with weights that depend on the run's seed only."""
    spreads = _spreads(planned)
    scheme = spec.family.initialisation
    model = build(planned.shape, seed=planned.seed, initialisation=scheme, eos_token_id=eos_token_id, hollow=spreads)
    compile = compiles(spec.training.compile, planned.flops, device, routed=planned.shape.experts is not None)
    if planned.sharded and compile:
        compile_blocks(model, device)  # alone too: the same kernels at any world size
    if planned.recompute:
        recompute_blocks(model)
    shards = None
    if spreads:
        from losslens.training.sharding import spread  # here: it takes a second to import

        shards = spread(model, planned, spec, device)
    else:
        model.to(device)
    of, precision = shards.owned if shards else model, spec.training.precision
    optimizers = Optimizers(of, spec.training.optimizer, peak_lr=planned.peak_lr, width=planned.shape.d_model, precision=precision)
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
        compile=compile and not planned.sharded,
        branch=planned.branch,
        shards=shards,
    )


def _spreads(planned: PlannedRun) -> bool:
    """Whether matrices are spread over ranks; a rank alone holds them whole."""
    return planned.sharded and dist.is_initialized() and dist.get_world_size() > 1


def resume(trainer: Trainer, results: Path, planned: PlannedRun) -> None:
    """Continue from the newest state that matches its hash, a branch first from its parent's, a tuning from its parent's weights; rank 0
    chooses, all ranks follow.

    Raises:
        EnvironmentFailure: this rank does not see what rank 0 sees. UserError, DataMismatch: as `parent_state` and `begin`.
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
    if planned.origin and not step:
        begin(trainer, planned.origin)
    if step:
        load_state(trainer, step, state)
        logger.info("%s resumes from step %d", run_id, step)


class Writer(Watch):
    """What a rank does between updates. Rank 0 has checkpoints, states, their losses and the log written, and keeps a progress file."""

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
        self.spec, self.planned, self.trainer = spec, planned, trainer
        self.rank, self.world, self._left = rank, world, left
        self.save_at = frozenset(planned.checkpoints)
        self.logged = trainer.step
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
        self._background = Background()
        self._saves = rank == 0 or trainer.shards is not None
        self._wants_state = self._has_asked = False  # for a state of all ranks; since a state was last begun
        if self._saves:
            self._files = _files(trainer)(results, planned, spec.training, corpus, trainer, attempt=self.attempt, world=world)
            self._buffers = Buffers(trainer.device)
        if rank == 0:
            rows = Results(results)
            rows.write("runs", [run_row(spec, planned, corpus.fingerprint)])
            for checkpoint in checkpoints.completed(results, planned.run_id):
                publish(rows, checkpoint)  # a kill may have come between the rename and these rows

    def save(self, tokens_per_second: float) -> None:
        """Begin to save a checkpoint of this moment, its losses, the log up to here, and a state to resume from."""
        if self._saves:
            self._begin(tokens_per_second, checkpoint=True)

    def stepped(self) -> None:
        """After every update: show progress, and save a state when one was asked for or is due."""
        now = time.monotonic()
        if self.trainer.step == self._resumed_at + 1 and self.rank == 0:
            journal.note(self.home, "stepping", step=self.trainer.step, world_size=self.world, attempt=self.attempt)
        self._background.look()
        if self.rank == 0:
            self._tell()
        if self.rank or now - self._shown_at < SHOW_EVERY_S:
            return
        self._rate = (self.trainer.step - self._shown) * self.planned.batch_tokens / (now - self._shown_at)
        self._show()
        if self._background.busy:
            return
        if leaving.save_asked() or leaving.asked_from_afar(self.home) or now - self._saved_at > self.spec.cluster.save_every:
            if self.trainer.shards:
                self._wants_state = not self._has_asked
            else:
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

    def wants_state(self) -> bool:
        """Whether it is time for a state that all ranks save together; said once."""
        wanted, self._wants_state = self._wants_state, False
        self._has_asked |= wanted
        return wanted

    def save_state(self) -> None:
        """Begin to save a state."""
        if self._saves:
            self._begin(self._rate, checkpoint=False)

    def leave(self) -> None:
        """Save a state, say so, and wait until the group is taken down; go on when that does not come."""
        step = self.trainer.step
        self.save_state()
        self.finish()
        self._left(step)
        leaving.hold()

    def finish(self) -> None:
        """Return when all is written."""
        self._background.wait()

    def diverged(self) -> None:
        """Log the last updates; no state is saved of them."""
        self.finish()
        if self.rank == 0:
            self._files.log(self.trainer.losses, self.trainer.grad_norms, self._stretch(0.0))
            self._show()

    def close(self) -> None:
        """End the thread that writes, once it has written."""
        self._background.close()

    def _begin(self, tokens_per_second: float | None, *, checkpoint: bool) -> None:
        """Take a snapshot and have it written, with everything before it, while training goes on."""
        self._background.wait()
        self._wants_state = self._has_asked = False
        answers = leaving.asked_from_afar(self.home)  # before the snapshot: a later request wants a later state
        nats = self._files.nats_on_device() if checkpoint else {}
        snapshot, stretch = self._buffers.take(self.trainer, nats), self._stretch(tokens_per_second)
        self._background.begin(partial(self._files.save, snapshot, stretch, checkpoint=checkpoint, answers=answers))
        self._saved_at = time.monotonic()
        if self.rank == 0:
            self._show()

    def _stretch(self, tokens_per_second: float | None) -> Stretch:
        """The updates since the last call."""
        first, self.logged = self.logged, self.trainer.step
        return Stretch(first, self.logged, tokens_per_second, datetime.now(UTC))

    def _show(self) -> None:
        """The progress file: where this run is, for people and for the share of workers that it gets."""
        self._shown, self._shown_at = self.trainer.step, time.monotonic()
        progress = {"step": self.trainer.step, "steps": self.planned.steps, "tokens_per_second": self._rate, "loss": self.trainer.seen_loss,
                    "world_size": self.world, "attempt": self.attempt, "slow": self._slow,
                    "time": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip
        journal.replace(self.home / "progress.json", progress)


def _files(trainer: Trainer) -> type[Files]:
    if not trainer.shards:
        return Files
    from losslens.training.sharded_saving import ShardedFiles

    return ShardedFiles


def run_row(spec: StudySpec, planned: PlannedRun, corpus: str) -> dict[str, Any]:
    """The run's row of `runs`; the same whenever it is made, so that a resumed run adds nothing."""
    shape, tokenizer, parent = planned.shape, spec.corpus.tokenizer, planned.branch or planned.origin
    return {
        "run_id": planned.run_id, "study": planned.study, "size": planned.size, "architecture": shape.architecture,
        "params": shape.params, "params_non_embedding": shape.params_non_embedding,
        "tokenizer": tokenizer.path or f"{tokenizer.kind}-{tokenizer.vocab_size}", "variant": planned.variant or None,
        "vocab_size": shape.vocab_size, "corpus": corpus, "seq_len": shape.seq_len,
        "optimizer": spec.training.optimizer.name, "schedule": spec.training.schedule.name, "peak_lr": planned.peak_lr,
        "batch_tokens": planned.batch_tokens, "tokens_planned": planned.tokens, "seed": planned.seed, "source": "losslens",
        "spec": canonical_text(spec), "parent_checkpoint_id": parent.checkpoint_id if parent else None,
    }  # fmt: skip


def _next_attempt(home: Path) -> int:
    home.mkdir(parents=True, exist_ok=True)
    counter = home / "attempts"
    attempt = int(counter.read_text()) + 1 if counter.is_file() else 1
    shards.write_bytes(counter, str(attempt).encode())
    return attempt
