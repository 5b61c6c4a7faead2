"""A pool of Ray actors that score checkpoints while training goes on. The driver holds the queue; actors hold engines.

Actors are asked for as the queue needs them and get work once Ray has placed them, so one slot that is there scores
everything while others may never come. An actor that dies is replaced and its assignment tried again, three times at
most; then it is reported as failed and the rest goes on. Only small records come back: actors write their rows themselves.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from eval_service.backlog import Assignment, next_for, pending
from eval_service.checkpoints import Checkpoint
from eval_service.engine import EngineDied
from eval_service.questions import Questions, versions
from eval_service.scorer import Finished, Scorer, already_scored, require_unchanged
from losslens.cluster.slots import EVAL
from losslens.errors import EnvironmentFailure

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
MOST_FAILED_STARTS = 10  # in a row: so many actors that die before they are ready are no accident
_CLOSING_S = 20.0  # an engine gets this long to end its processes


@dataclass
class _Seat:
    """One actor, what it works on, and the shapes it has seen."""

    actor: Any
    awaited: Any  # the future of what comes next: that it is placed and started, then each Finished, last that it has closed; None: idle
    placed: bool = False
    warm: set[str] = field(default_factory=set)
    assignment: Assignment | None = None
    took: Any = None  # the future that tells whether the actor lived to take its assignment
    idle_since: float = 0.0
    leaving: bool = False

    @property
    def idle(self) -> bool:
        return self.placed and self.assignment is None and not self.leaving


def seats_wanted(seats: int, working: int, waiting: int, most: int, least: int = 0) -> int:
    """How many seats there should be. One for each assignment, from `least` up to `most`; what is there stays warm."""
    return max(seats, least, min(most, working + waiting))


def seats_to_release(idle_s: Sequence[float], seats: int, least: int, release_after_s: float) -> int:
    """How many of `seats` may go, those that were idle longest: the ones idle for long enough, while `least` stay."""
    return max(0, min(sum(idle >= release_after_s for idle in idle_s), seats - least))


class ScoringPool:
    """Offer checkpoints as often as you like; each missing (checkpoint, task, format) is scored once. `add` takes any assignment.

    `options` are `ray.remote` options of one actor (`losslens.cluster.slots.Slots.scorer_options`); by default an
    `eval_slot`. There are never more than `actors`, and never fewer than `least`; those idle for `release_after_s` seconds
    end. An assignment gets `attempts` scorers. `roots`: see `Scorer`. Not thread-safe.

    Raises:
        UserError: a task that cannot be built, or a declared one that is not what was scored, before any actor starts.
    """

    def __init__(
        self,
        results: Path,
        questions: Questions,
        engine: str = "auto",
        *,
        actors: int = 1,
        least: int = 0,
        release_after_s: float = math.inf,
        attempts: int = MOST_ATTEMPTS,
        options: dict[str, object] | None = None,
        roots: Sequence[Path] | None = None,
    ) -> None:
        self._versions = versions(questions.build())
        require_unchanged(results, self._versions)
        self._settings = (results.resolve(), questions, engine, roots)
        self._options = options or {"num_cpus": 0.01, "resources": {EVAL: 1}}
        self._done = already_scored(results, engine)
        self._attempts: dict[str, int] = {}
        self._waiting: list[Assignment] = []
        self._seats: list[_Seat] = []
        self._most_seats, self._least_seats, self._release_after_s = actors, least, release_after_s
        self._most_attempts, self._failed_starts = attempts, 0

    def offer(self, checkpoints: Iterable[Checkpoint]) -> int:
        """Queue what these checkpoints still lack; how many assignments that added."""
        new = pending(checkpoints, self._done, self._versions)
        self._done.update((a.checkpoint.checkpoint_id, asked, self._versions[asked]) for a in new for asked in a.tasks)
        self._waiting += new
        self._dispatch()
        return len(new)

    def add(self, assignment: Assignment) -> None:
        """Queue an assignment, whatever has been scored; one at a time of each checkpoint."""
        self._waiting.append(assignment)
        self._dispatch()

    def withdraw(self, assignment: Assignment) -> None:
        """Forget an assignment that waits or is at work; in the second case its scorer ends with it."""
        self._attempts.pop(assignment.checkpoint.checkpoint_id, None)
        if assignment in self._waiting:
            self._waiting.remove(assignment)
        for seat in [seat for seat in self._seats if seat.assignment == assignment]:
            self._leave(seat)
        self._dispatch()

    @property
    def at_work(self) -> list[Assignment]:
        """What scorers are working on."""
        return [seat.assignment for seat in self._seats if seat.assignment is not None]

    @property
    def unfinished(self) -> int:
        """Assignments that wait or are being worked on."""
        return len(self._waiting) + self._working

    @property
    def waiting_for_slots(self) -> int:
        """Actors that are asked for and not there yet: their slot is taken, or its node has to come first."""
        return sum(not seat.placed for seat in self._seats)

    @property
    def scorers(self) -> int:
        """Actors that are there."""
        return len(self._seats) - self.waiting_for_slots

    def poll(self, wait: float = 0.0) -> list[Finished]:
        """What has ended since the last poll, waiting up to `wait` seconds for the first event."""
        awaited = {seat.awaited: seat for seat in self._seats if seat.awaited is not None}
        if not awaited:
            self._dispatch()
            return []
        ready, _ = ray.wait(list(awaited), timeout=wait)
        if len(awaited) > 1 and ready:
            ready, _ = ray.wait(list(awaited), num_returns=len(awaited), timeout=0)
        ended: list[Finished] = []
        for seat in (awaited[future] for future in ready):
            if seat.leaving:
                self._leave(seat)
            elif not seat.placed:
                ended += self._started(seat)
            elif record := self._collect(seat):
                ended.append(record)
        self._dispatch()
        return ended

    def drain(self, timeout: float) -> list[Finished]:
        """Everything that ends within `timeout` seconds; `unfinished` tells whether that was all."""
        ended: list[Finished] = []
        until = time.monotonic() + timeout
        while self.unfinished and (left := until - time.monotonic()) > 0:
            ended += self.poll(wait=left)
        return ended

    def close(self) -> None:
        """Let every engine end its processes, then end the actors. What waits is dropped."""
        self._waiting.clear()
        closing = [seat.awaited if seat.leaving else seat.actor.close.remote() for seat in self._seats if seat.leaving or seat.idle]
        ray.wait(closing, num_returns=len(closing), timeout=_CLOSING_S) if closing else None
        for seat in list(self._seats):
            self._leave(seat)

    @property
    def _working(self) -> int:
        return sum(seat.assignment is not None for seat in self._seats)

    def _seat(self) -> _Seat:
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
        # Not restarted by Ray: calls to an actor that is restarting fail at once, calls to a new one wait for it.
        decorate: Any = ray.remote
        actor = decorate(max_restarts=0, runtime_env=environment, **self._options)(Scorer).remote(*self._settings)
        return _Seat(actor, awaited=actor.__ray_ready__.remote())

    def _leave(self, seat: _Seat) -> None:
        self._seats.remove(seat)
        ray.kill(seat.actor)

    def _dispatch(self) -> None:
        """Hand out what waits, and see to it that there are as many seats as that needs."""
        for seat in self._seats:
            if seat.idle and self._waiting:
                elsewhere = set().union(*(other.warm for other in self._seats if other is not seat))
                seat.assignment = next_for(self._waiting, seat.warm, elsewhere)
                self._waiting.remove(seat.assignment)
                seat.warm.add(seat.assignment.checkpoint.shape)
                following = next_for(self._waiting, seat.warm, elsewhere).checkpoint.path if self._waiting else None
                seat.took = seat.actor.__ray_ready__.remote()  # calls of an actor are answered in order
                seat.awaited = seat.actor.score.remote(seat.assignment, following)
        wanted = seats_wanted(len(self._seats), self._working, len(self._waiting), self._most_seats, self._least_seats)
        self._seats += [self._seat() for _ in range(wanted - len(self._seats))]
        if not self.unfinished:  # nobody needs a node that has not come yet
            for seat in [seat for seat in self._seats if not seat.placed][: max(0, len(self._seats) - self._least_seats)]:
                self._leave(seat)
        if not self._waiting:
            self._release()

    def _release(self) -> None:
        """Let scorers that had nothing to do for long close their engines; `poll` ends them when they have."""
        now = time.monotonic()
        idle = sorted((seat for seat in self._seats if seat.idle), key=lambda seat: seat.idle_since)
        staying = sum(not seat.leaving for seat in self._seats)
        for seat in idle[: seats_to_release([now - s.idle_since for s in idle], staying, self._least_seats, self._release_after_s)]:
            seat.leaving, seat.awaited = True, seat.actor.close.remote()

    def _started(self, seat: _Seat) -> list[Finished]:
        """Take note that an actor is ready or died on the way; what waits is given up when none ever gets there."""
        try:
            ray.get(seat.awaited)
        except RayError as error:
            self._leave(seat)
            self._failed_starts += 1
            logger.warning("a scorer did not start (%d of %d in a row): %s", self._failed_starts, MOST_FAILED_STARTS, _first_line(error))
            return self._give_up(f"no scorer starts: {_first_line(error)}") if self._failed_starts == MOST_FAILED_STARTS else []
        seat.placed, seat.awaited, seat.idle_since = True, None, time.monotonic()
        self._failed_starts = 0
        return []

    def _give_up(self, why: str) -> list[Finished]:
        """Everything that waits, as failed; what is offered later is tried afresh."""
        given_up, self._waiting, self._failed_starts = self._waiting, [], 0
        return [
            Finished(a.checkpoint.checkpoint_id, a.tasks, attempts=0, error=_failure(a.checkpoint.checkpoint_id, why)) for a in given_up
        ]

    def _collect(self, seat: _Seat) -> Finished | None:
        """The record of a seat whose future is ready; None when its assignment goes back to the queue."""
        assignment = seat.assignment
        assert assignment is not None
        answer, seat.awaited, seat.assignment = seat.awaited, None, None
        seat.idle_since = time.monotonic()
        checkpoint_id = assignment.checkpoint.checkpoint_id
        attempts = self._attempts[checkpoint_id] = self._attempts.get(checkpoint_id, 0) + _lived(seat.took)
        try:
            record: Finished = ray.get(answer)
            again = isinstance(record.error, EngineDied)
        except RayTaskError as error:  # a fault of ours inside a living actor: trying again gives the same
            record = Finished(checkpoint_id, assignment.tasks, error=_failure(checkpoint_id, str(error.cause or error)))
            again = False
        except RayError as error:
            logger.warning("the scorer of %s died (attempt %d of %d): %s", checkpoint_id, attempts, self._most_attempts, _first_line(error))
            self._leave(seat)
            died = _failure(checkpoint_id, "its scorer died, often for lack of memory", EngineDied)
            record = Finished(checkpoint_id, assignment.tasks, error=died)
            again = True
        if again and attempts < self._most_attempts:
            self._waiting.insert(0, assignment)
            return None
        self._attempts.pop(checkpoint_id)
        return replace(record, attempts=attempts)


def _lived(took: Any) -> bool:
    """Whether an actor answered when it was handed an assignment. One that had died unseen says nothing about the checkpoint."""
    with contextlib.suppress(RayError):
        ray.get(took, timeout=0)
        return True
    return False


def _first_line(error: RayError) -> str:
    """What happened; Ray's advice follows on further lines."""
    return str(error).strip().partition("\n")[0]


def _failure(checkpoint_id: str, why: str, kind: type[EnvironmentFailure] = EnvironmentFailure) -> EnvironmentFailure:
    return kind(f"the checkpoint {checkpoint_id} could not be scored: {why}", "see the log of the scoring actor, then score again")
