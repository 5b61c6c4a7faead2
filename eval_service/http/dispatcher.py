"""Moves evaluations from the ledger through the pool: one thread, which alone touches the pool.

Every step is on disk before it is acted on, so a service that is killed at any moment queues again what was running. What
to do is decided in `evaluations`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from eval_service.admission import admit
from eval_service.backlog import Assignment
from eval_service.engine import EngineDied
from eval_service.http.catalogue import Catalogue
from eval_service.http.described import Described
from eval_service.http.evaluations import (
    Due,
    Evaluation,
    State,
    after,
    done,
    due,
    failed,
    interrupted,
    put_back,
    started,
)
from eval_service.http.ledger import Ledger
from eval_service.http.metrics import Metrics
from eval_service.pool import ScoringPool
from eval_service.position import StepNames
from eval_service.scored import ScoredSoFar
from eval_service.scorer import Finished
from eval_service.targets import Found, identify
from losslens.errors import LosslensError

logger = logging.getLogger(__name__)

BUSY_S, IDLE_S = 0.05, 0.5  # between two looks for new evaluations: while scorers are awaited, and while nothing is
PAUSE_S = 30.0  # after no scorer could be started
_LOOKERS = 2  # threads that read and hash what is submitted


@dataclass(frozen=True, slots=True)
class _Given:
    """What the pool has been given for an evaluation."""

    evaluation: Evaluation
    assignment: Assignment
    found: Found
    reused: dict[str, int]


class Dispatcher:
    """Scores what is in the ledger until it is told to drain. `say` prints a line for the operator."""

    def __init__(
        self,
        ledger: Ledger,
        pool: ScoringPool,
        catalogue: Catalogue,
        results: Path,
        roots: Sequence[Path],
        *,
        engine: str,
        metrics: Metrics,
        say: Callable[[str], None],
    ) -> None:
        self._ledger, self._pool, self._catalogue, self._metrics, self._say = ledger, pool, catalogue, metrics, say
        self._roots = roots
        self._scored, self._described = ScoredSoFar(results, engine), Described(results)
        self._inbox: queue.SimpleQueue[Evaluation] = queue.SimpleQueue()
        self._woken = threading.Event()
        self._drain_until: float | None = None
        self._lookers = ThreadPoolExecutor(_LOOKERS, "look-at-checkpoint")
        self._arriving: dict[str, tuple[Evaluation, Future[Found]]] = {}
        self._waiting: dict[str, tuple[Evaluation, Found]] = {}
        self._given: dict[str, _Given] = {}  # by checkpoint
        self._changed = True  # whether what is due must be decided anew
        self._paused_until = 0.0
        self.scorers = 0  # that are there, for other threads to read
        self._take_over()  # before anybody can submit: what is in the ledger now is from before

    def changed(self, evaluation: Evaluation) -> None:
        """Another thread has put this evaluation into the ledger, or changed it there."""
        self._inbox.put(evaluation)
        self._woken.set()

    def drain(self, within_s: float) -> None:
        """Take no more work, let what is being scored end within so many seconds, then end `run`."""
        self._drain_until = time.monotonic() + within_s
        self._woken.set()

    @property
    def draining(self) -> bool:
        """Whether new evaluations are refused."""
        return self._drain_until is not None

    def run(self) -> None:
        """Score until drained. Whatever is raised is a reason to end the service: the queue is on the disk."""
        try:
            while not self.draining:
                self._step()
            self._end()
        finally:
            self._lookers.shutdown(wait=False, cancel_futures=True)
            self._pool.close()

    def _take_over(self) -> None:
        """What a service before this one left."""
        for evaluation in self._ledger.unfinished():
            if evaluation.state is State.running:
                evaluation = self._put(evaluation, interrupted(evaluation, "the service died while it was being scored", time.time()))
            if evaluation.state is State.queued:
                self._inbox.put(evaluation)

    def _step(self) -> None:
        self._take_in()
        self._take_found()
        self._hand_out()
        self._note_started()
        for record in self._pool.poll(BUSY_S if self._pool.unfinished else 0.0):
            self._take(record)
        self._note_started()
        self.scorers = self._pool.scorers
        if not self._pool.unfinished:
            self._woken.wait(BUSY_S if self._arriving else IDLE_S)
            self._woken.clear()

    def _take_in(self) -> None:
        """What other threads have submitted and cancelled."""
        while not self._inbox.empty():
            evaluation = self._inbox.get()
            if evaluation.state is State.queued:
                self._arriving[evaluation.evaluation_id] = evaluation, self._lookers.submit(self._look_at, evaluation.checkpoint)
            else:
                self._forget(evaluation.evaluation_id)

    def _forget(self, evaluation_id: str) -> None:
        self._arriving.pop(evaluation_id, None)
        self._waiting.pop(evaluation_id, None)
        for checkpoint_id, given in list(self._given.items()):
            if given.evaluation.evaluation_id == evaluation_id:
                del self._given[checkpoint_id]
                self._pool.withdraw(given.assignment)
        self._changed = True

    def _look_at(self, checkpoint: str) -> Found:
        """Who this is. A directory named after a step is one of a run's, named after the directory it lies in."""
        directory = admit(checkpoint, self._roots)
        found = identify(directory, alone=StepNames().read(directory.name).step is None)
        self._described.add(found)
        return found

    def _take_found(self) -> None:
        """Checkpoints that have been read: who they are, or why they are none."""
        for evaluation_id, (evaluation, future) in list(self._arriving.items()):
            if not future.done():
                continue
            del self._arriving[evaluation_id]
            try:
                found = future.result()
                self._catalogue.versions(evaluation.tasks)  # a task may be gone since it was queued
            except LosslensError as error:
                self._settle(evaluation, failed(evaluation, error, time.time()))
            except Exception as error:  # a card or config of a shape nobody thought of must not end the service
                logger.exception("the checkpoint %s cannot be identified", evaluation.checkpoint)
                wrong = LosslensError(f"{evaluation.checkpoint} cannot be identified: {error!r}", "copy the checkpoint again")
                self._settle(evaluation, failed(evaluation, wrong, time.time()))
            else:
                self._waiting[evaluation_id] = evaluation, found
                self._changed = True

    def _hand_out(self) -> None:
        if not self._changed or not self._waiting or time.monotonic() < self._paused_until:
            return
        self._changed = False
        self._scored.refresh()
        known = [(evaluation, found.checkpoint.checkpoint_id) for evaluation, found in self._waiting.values()]
        versions = self._catalogue.versions(sorted({task for evaluation, _ in known for task in evaluation.tasks}))
        for move in due(known, self._given, self._scored.items, versions):
            evaluation, found = self._waiting.pop(move.evaluation_id)
            checkpoint_id = found.checkpoint.checkpoint_id
            if not isinstance(move, Due):
                self._settle(evaluation, done(evaluation, checkpoint_id, None, move.reused, time.time()))
                continue
            questions = self._catalogue.asked(evaluation.tasks, evaluation.limit, found.seq_len)
            assignment = Assignment(found.checkpoint, move.missing, questions)
            self._given[checkpoint_id] = _Given(evaluation, assignment, found, dict(move.reused))
            self._pool.add(assignment)

    def _note_started(self) -> None:
        for assignment in self._pool.at_work:
            checkpoint_id = assignment.checkpoint.checkpoint_id
            given = self._given[checkpoint_id]
            if given.evaluation.state is State.queued:
                running = started(given.evaluation, checkpoint_id, time.time())
                if self._ledger.replace(given.evaluation, running):
                    self._given[checkpoint_id] = _Given(running, assignment, given.found, given.reused)
                else:  # cancelled a moment ago
                    self._forget(running.evaluation_id)

    def _take(self, record: Finished) -> None:
        """An answer of the pool."""
        given = self._given.pop(record.checkpoint_id)
        self._changed = True
        if record.attempts == 0 and record.error is not None:  # it was never begun: no scorer starts
            self._say(f"{record.error}; trying again in {PAUSE_S:.0f} s")
            self._paused_until = time.monotonic() + PAUSE_S
            self._waiting[given.evaluation.evaluation_id] = given.evaluation, given.found
            return
        now = time.time()
        if record.error is None:
            self._metrics.scored(record, _age(given.found, now))
        elif isinstance(record.error, EngineDied):
            self._metrics.interrupted()
        then = after(given.evaluation, record, given.reused, now)
        if then.state is State.queued:
            self._waiting[then.evaluation_id] = self._put(given.evaluation, then), given.found
        else:
            self._settle(given.evaluation, then)

    def _settle(self, before: Evaluation, ended: Evaluation) -> None:
        """An evaluation has ended."""
        if self._put(before, ended) is ended:
            self._say(f"{ended.evaluation_id} {ended.state.value}: {ended.error or ended.checkpoint_id}")

    def _put(self, before: Evaluation, then: Evaluation) -> Evaluation:
        """`then`, which is now in the ledger; or, where it was cancelled meanwhile, that: the inbox will tell of it."""
        return then if self._ledger.replace(before, then) else self._ledger.get(then.evaluation_id) or then

    def _end(self) -> None:
        """Let what is being scored end, as long as there is time; what is not scored is queued again."""
        assert self._drain_until is not None
        for given in list(self._given.values()):
            if given.assignment not in self._pool.at_work:
                self._pool.withdraw(given.assignment)
        while self._pool.at_work and (left := self._drain_until - time.monotonic()) > 0:
            for record in self._pool.poll(min(left, BUSY_S)):
                self._take(record)
            self._take_in()
        for given in self._given.values():
            if given.evaluation.state is State.running:
                self._put(given.evaluation, put_back(given.evaluation))


def _age(found: Found, now: float) -> float | None:
    at = found.checkpoint.created_at
    if not at:
        return None
    created = datetime.fromisoformat(at)
    return now - (created if created.tzinfo else created.replace(tzinfo=UTC)).timestamp()
