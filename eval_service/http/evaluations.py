"""An evaluation: one request to score a checkpoint, and every step its state can take. Pure.

queued ──> running ──> done
  │  <─────── │ ─────> failed      a scorer or the service died: queued again, or failed after MOST_ATTEMPTS starts
  └───────────┴──────> cancelled
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from eval_service.backlog import Done
from eval_service.engine import EngineDied
from eval_service.questions import Asked
from eval_service.scorer import Finished
from losslens.errors import EnvironmentFailure, LosslensError, UserError

MOST_ATTEMPTS = 3


class State(StrEnum):
    """Where an evaluation is."""

    queued = "queued"
    running = "running"
    done = "done"
    failed = "failed"
    cancelled = "cancelled"


ENDED = (State.done, State.failed, State.cancelled)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Times are seconds since 1970. `attempts` counts starts; `reused` maps what had been scored before, written TASK:FORMAT, to
    its items."""

    evaluation_id: str
    checkpoint: str
    tasks: tuple[str, ...]
    limit: int | None
    submitted_at: float
    state: State = State.queued
    attempts: int = 0
    checkpoint_id: str | None = None
    engine: str | None = None
    reused: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None
    remedy: str | None = None
    started_at: float | None = None
    ended_at: float | None = None


def started(evaluation: Evaluation, checkpoint_id: str, at: float) -> Evaluation:
    """A scorer has begun."""
    assert evaluation.state is State.queued
    return replace(
        evaluation,
        state=State.running,
        attempts=evaluation.attempts + 1,
        checkpoint_id=checkpoint_id,
        started_at=at,
        error=None,
        remedy=None,
    )


def done(evaluation: Evaluation, checkpoint_id: str, engine: str | None, reused: Mapping[str, int], at: float) -> Evaluation:
    """Every task is scored and stored."""
    assert evaluation.state not in ENDED
    return replace(
        evaluation, state=State.done, checkpoint_id=checkpoint_id, engine=engine, reused=dict(reused), error=None, remedy=None, ended_at=at
    )


def failed(evaluation: Evaluation, error: LosslensError, at: float) -> Evaluation:
    """It cannot be scored, and trying again would not help."""
    assert evaluation.state not in ENDED
    return replace(evaluation, state=State.failed, error=error.message, remedy=error.remedy, ended_at=at)


def interrupted(evaluation: Evaluation, why: str, at: float) -> Evaluation:
    """Its scorer, or the service, died under it: it waits again, unless that has happened too often."""
    assert evaluation.state is State.running
    if evaluation.attempts < MOST_ATTEMPTS:
        return replace(evaluation, state=State.queued, error=why, started_at=None)
    error = EnvironmentFailure(
        f"{why}, in each of {evaluation.attempts} attempts", "look at the checkpoint and at the memory it needs, then submit it again"
    )
    return failed(evaluation, error, at)


def put_back(evaluation: Evaluation) -> Evaluation:
    """The service stops in good order before it is scored: that start does not count."""
    assert evaluation.state is State.running
    return replace(evaluation, state=State.queued, attempts=evaluation.attempts - 1, started_at=None)


def cancelled(evaluation: Evaluation, at: float) -> Evaluation:
    """Nobody wants it any more.

    Raises:
        UserError: it has ended otherwise.
    """
    if evaluation.state is State.cancelled:
        return evaluation
    if evaluation.state in ENDED:
        raise UserError(f"the evaluation {evaluation.evaluation_id} is {evaluation.state.value} already", "nothing is left to cancel")
    return replace(evaluation, state=State.cancelled, ended_at=at)


def after(evaluation: Evaluation, record: Finished, reused: Mapping[str, int], at: float) -> Evaluation:
    """What the pool's answer makes of a running evaluation."""
    if record.error is None:
        return done(evaluation, record.checkpoint_id, record.engine, reused, at)
    if isinstance(record.error, EngineDied):
        return interrupted(evaluation, record.error.message, at)
    return failed(evaluation, record.error, at)


def urgency(evaluation: Evaluation) -> tuple[int, float]:
    """The smallest is scored first: what has killed a scorer waits behind what has not, else first come first served."""
    return evaluation.attempts, evaluation.submitted_at


@dataclass(frozen=True, slots=True)
class Settled:
    """All of its tasks have been scored: nothing is left to do. `reused` as in `Evaluation`."""

    evaluation_id: str
    reused: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Due:
    """To be scored now, on `missing`; `reused` as in `Evaluation`."""

    evaluation_id: str
    missing: tuple[Asked, ...]
    reused: Mapping[str, int]


def due(
    waiting: Sequence[tuple[Evaluation, str]],
    busy: Collection[str],
    scored: Mapping[Done, int],
    versions: Mapping[str, Mapping[Asked, int]],
) -> list[Settled | Due]:
    """What to do with evaluations that wait, each given with its checkpoint_id.

    `busy` are checkpoints that somebody scores: one evaluation of a checkpoint at a time, so that no task is scored twice.
    `scored` maps what is stored to the number of items it was scored on; `versions` are those of everything that a task asked
    for, as it is written there, stands for.
    """
    moves: list[Settled | Due] = []
    taken = set(busy)
    for evaluation, checkpoint_id in sorted(waiting, key=lambda pair: urgency(pair[0])):
        if checkpoint_id in taken:
            continue
        wanted = {asked: version for task in evaluation.tasks for asked, version in versions[task].items()}
        known = {asked: scored.get((checkpoint_id, asked, version)) for asked, version in wanted.items()}
        reused = {str(asked): items for asked, items in known.items() if items is not None}
        missing = tuple(asked for asked, items in known.items() if items is None)
        if missing:
            taken.add(checkpoint_id)
            moves.append(Due(evaluation.evaluation_id, missing, reused))
        else:
            moves.append(Settled(evaluation.evaluation_id, reused))
    return moves
